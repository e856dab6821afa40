"""Read the weights of an old PyTorch checkpoint without PyTorch.

PyTorch before 1.6 saved a state dict as a sequence of pickles (magic number, protocol version, machine, state dict,
keys of the storages) followed by the storages themselves: for each, the number of elements (int64) and their bytes,
little-endian. The pickles are read with an allow-list of four names, so nothing in a file can run.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from slicevote_exporters.errors import WeightsError

Array = npt.NDArray[Any]

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

DAMAGE = (EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What `pickle` raises for a damaged file besides its own error; it documents no complete list."""


class _Storage(NamedTuple):
    """A storage that the state dict refers to; its bytes follow later in the file."""

    key: str
    dtype: np.dtype[Any]


class _View(NamedTuple):
    """A tensor: a part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(storage: object, offset: object, shape: object, strides: object, *_: object) -> _View:
    """Take the arguments of `torch._utils._rebuild_tensor_v2`, checked; gradients and hooks are left out."""
    match storage, offset, shape, strides:
        case _Storage(), int(), tuple(), tuple() if all(isinstance(number, int) for number in (*shape, *strides)):
            return _View(storage, offset, shape, strides)
    raise pickle.UnpicklingError("a tensor that is not part of a storage")


class _Unpickler(pickle.Unpickler):
    """Builds ordered dictionaries and views of storages, and refuses everything else."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _view,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what an allowed name stands for."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a reference to a storage."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(), None):
                return _Storage(key, dtype)
        raise pickle.UnpicklingError("a reference to something other than a whole storage")


def read_legacy_checkpoint(path: Path) -> dict[str, Array]:
    """Read a state dict of float32 and int64 tensors that PyTorch before 1.6 saved.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the file's order.

    Raises:
        WeightsError: The file cannot be read, is of another format, or refers to anything but plain tensors.
    """
    try:
        with path.open("rb") as file:
            if (_unpickle(file, path), _unpickle(file, path)) != (MAGIC_NUMBER, PROTOCOL_VERSION):
                raise WeightsError(f"{path} is not a checkpoint in the format of PyTorch before 1.6")
            _machine, state, keys = (_unpickle(file, path) for _ in range(3))
            if not isinstance(state, OrderedDict) or not isinstance(keys, list):
                raise WeightsError(f"{path} holds no state dict")
            views = {str(name): view for name, view in state.items() if isinstance(view, _View)}
            if len(views) != len(state):
                raise WeightsError(f"{path} holds something other than tensors")
            dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
            if set(map(str, keys)) != set(dtypes):
                raise WeightsError(f"{path} does not hold the storages that its tensors refer to")
            storages = {key: _read_storage(file, dtypes[key], path) for key in keys}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error})") from error
    return {name: _array(name, view, storages, path) for name, view in views.items()}


def _unpickle(file: IO[bytes], path: Path) -> object:
    try:
        loaded: object = _Unpickler(file).load()
    except (pickle.UnpicklingError, *DAMAGE) as error:
        raise WeightsError(f"{path} is not a checkpoint of plain tensors ({error})") from error
    return loaded


def _read_storage(file: IO[bytes], dtype: np.dtype[Any], path: Path) -> Array:
    size = int.from_bytes(file.read(8), "little", signed=True) * dtype.itemsize
    content = file.read(size) if 0 <= size <= path.stat().st_size else b""
    if len(content) != size:
        raise WeightsError(f"{path} is cut short or damaged; install its package again")
    return np.frombuffer(content, dtype)


def _array(name: str, view: _View, storages: dict[str, Array], path: Path) -> Array:
    """Return a tensor as a contiguous array; kernels that were transposed before they were saved have odd strides."""
    storage = storages[view.storage.key]
    fits = len(view.shape) == len(view.strides) and min(view.offset, *view.shape, *view.strides, 0) >= 0
    last = view.offset + sum((length - 1) * stride for length, stride in zip(view.shape, view.strides, strict=fits))
    if not fits or last >= len(storage) or prod(view.shape) > len(storage):
        raise WeightsError(f"{path}: the tensor {name} reaches beyond its storage; install the package again")
    byte_strides = tuple(stride * storage.itemsize for stride in view.strides)
    return as_strided(storage[view.offset :], view.shape, byte_strides).copy()
