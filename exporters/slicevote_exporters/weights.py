"""Read checkpoint files with PyTorch, and load them into a network without leaving anything out."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from slicevote_exporters.errors import WeightsError

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net")
"""Keys under which training scripts save the weights; DINO's teacher comes before its student, as in its evaluation."""

SHOWN = 4
"""Number of names that an error lists."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint file."""

    origin: str
    """The file, for messages."""
    tensors: Mapping[str, Tensor]
    """By name, in the file's order."""
    wrapper: str = ""
    """The key under which the file had them, such as "teacher"; empty if they were at its top level."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: a safetensors file, or one written by `torch.save`, without running any code in it.

    A state dict wrapped as `{"state_dict": ...}`, `{"model": ...}`, `{"teacher": ...}` is unwrapped.

    Args:
        path: The file.

    Raises:
        WeightsError: The file does not exist, is not a checkpoint, is cut short, or holds no tensors.
    """
    head = _head(path)
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            document: object = safetensors.torch.load_file(path)
        else:
            # Training checkpoints carry the options of the run, as a Namespace of plain values.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a checkpoint of plain tensors, and code in a checkpoint is never run; "
            "save its state dict with torch.save or safetensors, or fetch it again"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint; "
            "it is probably cut short or another kind of file; fetch it again and compare its size"
        ) from error
    wrapper = _wrapper(document)
    if wrapper:
        assert isinstance(document, Mapping)
        document = document[wrapper]
    return Checkpoint(str(path), _tensors(document, path), wrapper)


def _head(path: Path) -> bytes:
    """Return the file's first bytes; raise for the kinds of files that are commonly mistaken for checkpoints."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give --weights the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened ({error.strerror or error})") from error
    if not head:
        raise WeightsError(f"{path} is empty; fetch it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsError(
            f"{path} is a web page, not a checkpoint; the download was answered with a page "
            "(a login, a proxy, a licence to accept). Fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the checkpoint; fetch the file that it points to")
    if head.startswith(b"\x89HDF"):
        raise WeightsError(f"{path} is a Keras (HDF5) file; convert it to a PyTorch state dict first")
    return head


def _wrapper(document: object) -> str:
    if not isinstance(document, Mapping):
        return ""
    return next((name for name in WRAPPERS if isinstance(document.get(name), Mapping)), "")


def _tensors(document: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(document, Mapping):
        raise WeightsError(f"{path} holds a {type(document).__name__}, not a state dict (names and tensors)")
    tensors = {str(name): value for name, value in document.items() if isinstance(value, Tensor)}
    if not tensors:
        names = ", ".join(sorted(map(str, document))[:SHOWN])
        raise WeightsError(f"{path} holds no tensors at its top level (it has: {names or 'nothing'})")
    others = [str(name) for name in document if str(name) not in tensors]
    if others:
        raise WeightsError(f"{path} mixes tensors with other values ({_some(others)}); save its state dict alone")
    return tensors


def without_prefix(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Remove prefixes that every name has, such as `module.` or `backbone.`, until none is left."""
    stripped = dict(tensors)
    while True:
        for prefix in prefixes:
            if all(name.startswith(prefix) for name in stripped):
                stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
                break
        else:
            return stripped


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load tensors into a network: all of them, and no others.

    Floating-point tensors of another precision are converted to float32. Counters of batches, which older versions
    of PyTorch did not save and inference does not read, may be missing.

    Args:
        network: Receives the weights.
        tensors: By the network's own names.
        origin: Where they come from, for messages.

    Raises:
        WeightsError: A tensor is missing, superfluous, of the wrong shape, or not finite.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith(".num_batches_tracked")]
    extra = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{label} {_some(names)}"
        for label, names in (("missing:", missing), ("not in the network:", extra), ("of another shape:", misshapen))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{origin} does not fit {type(network).__name__} ({len(expected)} tensors): {'; '.join(problems)}. "
            "Nothing was loaded; give the checkpoint of this network"
        )
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{origin} holds values that are not finite, in {_some(broken)}")
    network.load_state_dict({name: tensors.get(name, own) for name, own in expected.items()}, strict=True)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
