"""Download weights once, into PyTorch's cache folder."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from slicevote_exporters.errors import ExportError, HubUnreachable, WeightsError
from slicevote_exporters.registry import BackboneSpec
from slicevote_exporters.weights import Checkpoint, read_checkpoint

TIMEOUT_S = 30


def fetch(url: str, spec: BackboneSpec) -> Path:
    """Return the file at a URL: from the cache, or else downloaded, whole or not at all.

    Raises:
        HubUnreachable: It cannot be downloaded; the message names the file to bring.
        ExportError: The cache folder cannot be created.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"PyTorch's cache folder {target.parent} cannot be created ({error.strerror or error}); set TORCH_HOME"
        ) from error
    try:
        with _socket_timeout():
            torch.hub.download_url_to_file(url, str(target), progress=False)
    except (OSError, http.client.HTTPException) as error:
        raise HubUnreachable(unreachable(spec, url, error)) from error
    return target


def fetch_checkpoint(url: str, spec: BackboneSpec) -> Checkpoint:
    """Fetch and read a checkpoint. One that cannot be read is removed from the cache.

    Raises:
        HubUnreachable: It cannot be downloaded.
        WeightsError: What was downloaded is not a checkpoint.
    """
    path = fetch(url, spec)
    try:
        return read_checkpoint(path)
    except WeightsError:
        path.unlink(missing_ok=True)
        raise


def unreachable(spec: BackboneSpec, address: str, error: BaseException) -> str:
    """Return the message for weights that cannot be downloaded."""
    reason = getattr(error, "reason", None) or error
    lines = str(reason).strip().splitlines()
    return (
        f"the weights of {spec.name} cannot be fetched from {address} ({lines[0] if lines else type(error).__name__}). "
        f"On a machine with internet access, fetch {spec.source.file_name} from there, copy it here, and give it with "
        f"--weights {spec.source.file_name}"
    )


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Bound PyTorch's download, which waits for ever on a network that drops packets, as hospital networks do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
