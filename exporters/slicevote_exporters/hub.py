"""Weights that come from the internet, kept in PyTorch's cache folder so that they come once."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from slicevote_exporters.errors import HubUnreachable, WeightsError
from slicevote_exporters.registry import BackboneSpec
from slicevote_exporters.weights import Checkpoint, read_checkpoint

TIMEOUT_S = 30


def fetch(url: str, spec: BackboneSpec) -> Path:
    """The file at that address: from the cache if it is there, else downloaded whole or not at all.

    Raises:
        HubUnreachable: It cannot be had; the message names the file to bring.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout():
            torch.hub.download_url_to_file(url, str(target), progress=False)
    except (OSError, http.client.HTTPException) as error:
        raise HubUnreachable(unreachable(spec, url, error)) from error
    return target


def fetch_checkpoint(url: str, spec: BackboneSpec) -> Checkpoint:
    """Fetches and reads a checkpoint. One that cannot be read is taken out of the cache again.

    Raises:
        HubUnreachable: It cannot be had.
        WeightsError: What came is not a checkpoint.
    """
    path = fetch(url, spec)
    try:
        return read_checkpoint(path)
    except WeightsError:
        path.unlink(missing_ok=True)
        raise


def unreachable(spec: BackboneSpec, address: str, error: BaseException) -> str:
    """The sentence for weights that cannot be fetched."""
    reason = getattr(error, "reason", None) or error
    lines = str(reason).strip().splitlines()
    return (
        f"the weights of {spec.name} cannot be fetched from {address} ({lines[0] if lines else type(error).__name__}). "
        f"On a machine with internet fetch {spec.source.file_name} from there, bring it here, and give it with "
        f"--weights {spec.source.file_name}; docs/backbones.md has the details"
    )


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """PyTorch's download waits for ever on a network that swallows packets, as hospital networks do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
