"""ONNX Runtime: the CPU, and NVIDIA's GPUs through CUDA or TensorRT.

The GPU providers are written after ONNX Runtime's documentation and have not been measured on a GPU yet; the binding of
inputs and outputs is tested on the CPU, where it works the same way.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from slicevote.contract import INPUT_NAME, OUTPUT_NAME

from slicevote_server.errors import StartupError
from slicevote_server.runtime.interface import Numerics
from slicevote_server.runtime.parallel import ParallelBatches, Threads

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_BUILDS = ("onnxruntime", "onnxruntime-gpu")

# TensorRT compiles for minutes; what it compiled is kept beside the file. Without the profile it would compile anew
# for every new number of slices in a batch.
_TENSORRT_OPTIONS = {
    "trt_engine_cache_enable": "1",
    "trt_profile_min_shapes": f"{INPUT_NAME}:1x224x224",
    "trt_profile_opt_shapes": f"{INPUT_NAME}:8x224x224",
    "trt_profile_max_shapes": f"{INPUT_NAME}:256x224x224",
}


class OnnxSession:
    """A serving graph in ONNX Runtime.

    Args:
        path: The ONNX file.
        precision: Its precision.
        provider: Execution provider that must carry the graph.
        threads: Threads on the CPU; 0 means one a core.
        bind: Bind input and output to the device instead of passing arrays; by default on every device but the CPU,
            where it gains nothing.

    Raises:
        StartupError: The file is not ONNX, or the provider is not there or refuses.
    """

    def __init__(
        self, path: Path, precision: str, *, provider: str = CPU, threads: int = 0, bind: bool | None = None
    ) -> None:
        explain_mixed_builds()
        divided = Threads.of(threads)
        self._session = open_session(path, _provider_list(path, provider), threads=divided.shared + 1)
        carrier = self._session.get_providers()[0]
        if carrier != provider:
            # ONNX Runtime falls back to the CPU with no more than a warning.
            raise StartupError(
                f"{path}: {provider} cannot be used on this machine (ONNX Runtime fell back to {carrier}). It needs a "
                "GPU, its driver and CUDA libraries, and onnxruntime-gpu: pip install 'slicevote[gpu]'"
            )
        self._bind = provider != CPU if bind is None else bind
        self._device = "cpu" if provider == CPU else "cuda"
        self._batches = ParallelBatches(functools.partial(_run, self._session), divided.workers)
        self.numerics = Numerics("onnxruntime", carrier, precision)

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes grey slices float32 [N, 224, 224] in [0, 1] and gives float32 [N, D], unit length."""
        if self._bind:
            return self._run_bound(slices)
        return self._batches.compute(slices)

    def _run_bound(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(slices, self._device, 0))
        binding.bind_output(OUTPUT_NAME, self._device, 0)
        self._session.run_with_iobinding(binding)
        embeddings: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return embeddings


def _run(session: Any, slices: NDArray[np.float32]) -> NDArray[np.float32]:
    embeddings: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: slices})[0]
    return embeddings


def open_session(
    path: Path,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = (CPU,),
    *,
    threads: int = 0,
    optimize: bool = True,
) -> Any:
    """Opens an ONNX file.

    Args:
        path: The file.
        providers: Execution providers, best first.
        threads: Threads that compute one batch; 0 means one a core.
        optimize: Optimise the graph; without, opening is quick and running slow.

    Raises:
        StartupError: It is not there, or not ONNX.
    """
    if not path.is_file():
        raise StartupError(f"{path}: there is no such file; 'slicevote-export NAME --out {path.name}' makes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Where there are several, they may spin while a batch is computed, but not after it: that would take the processor
    # from decoding, which runs at the same time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise StartupError(f"{path}: this is not an ONNX file that ONNX Runtime can load ({error})") from error


def has_provider(provider: str) -> bool:
    """Tells whether this build of ONNX Runtime knows a provider; not yet whether the machine can carry it."""
    return provider in onnxruntime.get_available_providers()


def explain_mixed_builds() -> None:
    """Warns where both builds of ONNX Runtime are installed: they are one module, and the last one wins."""
    installed = [name for name in _BUILDS if _is_installed(name)]
    if len(installed) > 1:
        logger.warning(
            "both onnxruntime and onnxruntime-gpu are installed; they are the same module and overwrite each other. "
            "Uninstall both, then install 'slicevote[server]' or 'slicevote[gpu]'"
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _provider_list(path: Path, provider: str) -> list[str | tuple[str, Mapping[str, str]]]:
    """Gives a provider with its options and those that it may hand parts of the graph to."""
    cache = {"trt_engine_cache_path": str(path.parent / f"{path.stem}.tensorrt")}
    chains: dict[str, list[str | tuple[str, Mapping[str, str]]]] = {
        CPU: [CPU],
        CUDA: [CUDA, CPU],
        TENSORRT: [(TENSORRT, {**_TENSORRT_OPTIONS, **cache}), CUDA, CPU],
    }
    return chains[provider]
