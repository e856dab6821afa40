"""Backbones in OpenVINO on the CPU, in fp32 or in bf16.

On processors with bf16 units (AMX, AVX512-BF16), bf16 is the fastest way to embed without a GPU. Its embeddings are
close to those of fp32, not equal, so an archive and its queries should use the same precision.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import INPUT_NAME, OUTPUT_NAME

from slicevote_server.errors import StartupError
from slicevote_server.runtime.interface import Numerics
from slicevote_server.runtime.parallel import ParallelBatches, Threads

logger = logging.getLogger(__name__)

DEVICE = "CPU"

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoModel:
    """A backbone in OpenVINO.

    Args:
        path: The ONNX file.
        precision: "fp32" or "bf16".
        threads: Threads; 0 means one per core.

    Raises:
        StartupError: OpenVINO is not installed, cannot load or compute the file, or does not support the precision on
            this processor.
    """

    def __init__(self, path: Path, precision: str, *, threads: int = 0) -> None:
        core = _core()
        divided = Threads.of(threads)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": str(divided.workers),
            "INFERENCE_NUM_THREADS": str(divided.workers + divided.shared),
        }
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            compiled = core.compile_model(core.read_model(str(path)), DEVICE, settings)
            # A hint may be ignored, so the property is read back.
            used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            for _ in range(divided.workers):
                self._requests.put(compiled.create_infer_request())
            self._batches = ParallelBatches(self._infer, divided.workers)
        except RuntimeError as error:
            raise StartupError(
                f"{path}: OpenVINO cannot compute this file ({error}); choose another --provider, such as cpu"
            ) from error
        if used != _HINTS[precision]:
            raise StartupError(
                f"{path}: OpenVINO computes in {used} on this processor, not in {precision}; choose another "
                "--provider, such as cpu"
            )
        self.numerics = Numerics("openvino", DEVICE, precision)

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings of grey slices; see `interface.Runtime`."""
        embeddings = self._batches.compute(slices)
        # Vectors normalised in bf16 are off unit length in the third digit.
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings

    def _infer(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        request = self._requests.get()
        try:
            # The result is copied: the request reuses its memory for the next chunk.
            return np.array(request.infer({INPUT_NAME: slices}, share_inputs=True)[OUTPUT_NAME], dtype=np.float32)
        finally:
            self._requests.put(request)


def is_installed() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Return whether OpenVINO is installed and computes in bf16 on this processor."""
    if not is_installed():
        return False
    try:
        return "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    except (StartupError, RuntimeError) as error:
        logger.warning("OpenVINO is not used: %s", error)
        return False


def _core() -> Any:
    if not is_installed():
        raise StartupError("OpenVINO is not installed; pip install 'slicevote[openvino]', or choose another --provider")
    try:
        return importlib.import_module("openvino").Core()
    except (ImportError, RuntimeError) as error:
        raise StartupError(
            f"OpenVINO is installed but does not load ({error}); reinstall it with "
            "pip install --force-reinstall 'slicevote[openvino]', or choose another --provider"
        ) from error
