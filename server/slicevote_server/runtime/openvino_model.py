"""OpenVINO on the CPU, in fp32 or in bf16.

On processors with bf16 units (AMX, AVX512-BF16) bf16 is the fastest way to embed without a GPU. Its embeddings are near
those of fp32, not equal: an archive and its queries want the same.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import INPUT_NAME, OUTPUT_NAME

from slicevote_server.errors import StartupError
from slicevote_server.runtime.interface import Numerics
from slicevote_server.runtime.parallel import ParallelBatches, Threads

DEVICE = "CPU"

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoModel:
    """A serving graph in OpenVINO.

    Args:
        path: The ONNX file.
        precision: "fp32" or "bf16".
        threads: Threads; 0 means one a core.

    Raises:
        StartupError: OpenVINO is not installed, cannot read the file, or does not compute in this precision.
    """

    def __init__(self, path: Path, precision: str, *, threads: int = 0) -> None:
        core = _core()
        divided = Threads.of(threads)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": str(divided.workers),
            "INFERENCE_NUM_THREADS": str(divided.workers + divided.shared),
        }
        try:
            compiled = core.compile_model(core.read_model(str(path)), DEVICE, settings)
        except RuntimeError as error:
            raise StartupError(f"{path}: OpenVINO cannot compile this file ({error})") from error
        # A hint may be ignored; what was made of it may not.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _HINTS[precision]:
            raise StartupError(f"{path}: OpenVINO computes in {used} on this processor, not in {precision}")
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(divided.workers):
            requests.put(compiled.create_infer_request())
        self._batches = ParallelBatches(functools.partial(_infer, requests), divided.workers)
        self.numerics = Numerics("openvino", DEVICE, precision)

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes grey slices float32 [N, 224, 224] in [0, 1] and gives float32 [N, D], unit length."""
        embeddings = self._batches.compute(slices)
        # Normalised in bf16, lengths are off in the third digit.
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings


def _infer(requests: queue.SimpleQueue[Any], slices: NDArray[np.float32]) -> NDArray[np.float32]:
    request = requests.get()
    try:
        # What comes out is copied: the request keeps its place for the next piece.
        return np.array(request.infer({INPUT_NAME: slices}, share_inputs=True)[OUTPUT_NAME], dtype=np.float32)
    finally:
        requests.put(request)


def is_installed() -> bool:
    """Tells whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Asks the processor whether it computes in bf16."""
    return is_installed() and "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def _core() -> Any:
    if not is_installed():
        raise StartupError("OpenVINO is not installed: pip install 'slicevote[openvino]'")
    return importlib.import_module("openvino").Core()
