"""Backbones in ONNX Runtime: on the CPU, and on NVIDIA GPUs through CUDA or TensorRT.

CUDA has been measured on an NVIDIA H100 (docs, benchmarks); TensorRT follows ONNX Runtime's documentation and has not
been run. The binding of inputs and outputs is tested on the CPU, where it works the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME

from slicevote_server.errors import StartupError
from slicevote_server.log import native_lines_as_debug
from slicevote_server.runtime.interface import DEFAULT_BATCH, Numerics
from slicevote_server.runtime.parallel import ParallelBatches, Threads

logger = logging.getLogger(__name__)

# While it is imported it looks for GPUs, and warns on stderr of what it cannot read; no option of its own stops that.
with native_lines_as_debug(logger):
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_BUILDS = ("onnxruntime", "onnxruntime-gpu")

_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    MemoryError,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises: its own classes, which share no base class, and those of its Python layer."""

_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}

# TensorRT compiles for minutes; the compiled engine is cached beside the file. Without the profile it would compile
# again for every new number of slices in a batch.
_TENSORRT_OPTIONS = {
    "trt_engine_cache_enable": "1",
    "trt_profile_min_shapes": f"{INPUT_NAME}:1x224x224",
    "trt_profile_opt_shapes": f"{INPUT_NAME}:8x224x224",
    "trt_profile_max_shapes": f"{INPUT_NAME}:256x224x224",
}


class OnnxSession:
    """A backbone in ONNX Runtime.

    Args:
        path: The ONNX file.
        precision: Precision of the file.
        provider: Execution provider that must compute the graph.
        threads: Threads on the CPU; 0 means one per core.
        bind: Bind input and output to the device instead of passing arrays. By default on every device but the CPU,
            where it gains nothing.
        batch_size: Slices that a bound session computes every time, fewer being filled up: cuDNN prepares its kernels
            anew whenever the number changes, which takes longer than 100 slices do.

    Raises:
        StartupError: The file cannot be loaded or computed, or the provider cannot be used on this machine.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        *,
        provider: str = CPU,
        threads: int = 0,
        bind: bool | None = None,
        batch_size: int = DEFAULT_BATCH,
    ) -> None:
        explain_mixed_builds()
        if not has_provider(provider):
            raise _not_usable(path, provider, "this build of ONNX Runtime does not have it")
        divided = Threads.of(threads)
        if provider != CPU and has_provider(CUDA):
            # CUDA and cuDNN from packages of pip are not on the loader's path.
            onnxruntime.preload_dlls()
        self._session = open_session(path, _provider_list(path, provider), threads=divided.shared + 1)
        first_provider = self._session.get_providers()[0]
        if first_provider != provider:
            # ONNX Runtime falls back to the CPU with only a warning.
            raise _not_usable(path, provider, f"ONNX Runtime fell back to {first_provider}")
        self._batch_size = batch_size
        self._device = "cpu" if provider == CPU else "cuda"
        self.numerics = Numerics("onnxruntime", provider, precision)
        try:
            if provider != CPU if bind is None else bind:
                self._compute = self._run_bound
                self._compute(np.zeros((1, INPUT_SIZE, INPUT_SIZE), np.float32))
            else:
                self._compute = ParallelBatches(self._run, divided.workers).compute
        except _ERRORS as error:
            raise StartupError(
                f"{path}: ONNX Runtime cannot compute this graph on {provider} ({error}); export the backbone again, "
                "or choose another --provider"
            ) from error

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings of grey slices; see `interface.Runtime`."""
        return self._compute(slices)

    def _run(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = self._session.run([OUTPUT_NAME], {INPUT_NAME: slices})[0]
        return embeddings

    def _run_bound(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(slices), self._batch_size):
            part = slices[start : start + self._batch_size]
            batch = np.zeros((self._batch_size, *slices.shape[1:]), np.float32)
            batch[: len(part)] = part
            parts.append(self._run_bound_batch(batch)[: len(part)])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run_bound_batch(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(slices, self._device, 0))
        binding.bind_output(OUTPUT_NAME, self._device, 0)
        self._session.run_with_iobinding(binding)
        embeddings: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return embeddings


def open_session(
    path: Path,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = (CPU,),
    *,
    threads: int = 0,
    optimize: bool = True,
) -> Any:
    """Return an `onnxruntime.InferenceSession` of an ONNX file.

    Args:
        path: The ONNX file.
        providers: Execution providers, best first.
        threads: Threads that compute one batch; 0 means one per core.
        optimize: Optimise the graph. Without it, loading is quick and computing slow.

    Raises:
        StartupError: The file does not exist, or ONNX Runtime cannot load it.
    """
    if not path.is_file():
        raise StartupError(f"{path}: there is no such file; 'slicevote-export NAME --out {path.name}' makes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Several threads may spin while a batch is computed, but not after it: that would take the CPU away from decoding,
    # which runs at the same time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except _ERRORS as error:
        raise StartupError(
            f"{path}: this is not an ONNX file that ONNX Runtime can load ({error}); give one made by slicevote-export"
        ) from error


def has_provider(provider: str) -> bool:
    """Return whether this build of ONNX Runtime has a provider; the machine may still be unable to run it."""
    return provider in onnxruntime.get_available_providers()


def explain_mixed_builds() -> None:
    """Log a warning if both builds of ONNX Runtime are installed: they are the same module, and the last one wins."""
    installed = [name for name in _BUILDS if _is_installed(name)]
    if len(installed) > 1:
        logger.warning(
            "both onnxruntime and onnxruntime-gpu are installed; they are the same module and overwrite each other. "
            "Uninstall both, then install 'slicevote[server]' or 'slicevote[gpu]'"
        )


def _not_usable(path: Path, provider: str, reason: str) -> StartupError:
    return StartupError(
        f"{path}: {provider} cannot be used on this machine ({reason}). It needs a GPU, its driver and CUDA libraries, "
        "and onnxruntime-gpu: pip install 'slicevote[gpu]'; or choose another --provider"
    )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _provider_list(path: Path, provider: str) -> list[str | tuple[str, Mapping[str, str]]]:
    """Return a provider with its options, followed by the providers that it may hand parts of the graph to."""
    cache = {"trt_engine_cache_path": str(path.parent / f"{path.stem}.tensorrt")}
    chains: dict[str, list[str | tuple[str, Mapping[str, str]]]] = {
        CPU: [CPU],
        CUDA: [(CUDA, _CUDA_OPTIONS), CPU],
        TENSORRT: [(TENSORRT, {**_TENSORRT_OPTIONS, **cache}), (CUDA, _CUDA_OPTIONS), CPU],
    }
    return chains[provider]
