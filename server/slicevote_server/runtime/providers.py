"""The providers that a backbone can run on, and the choice between them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from slicevote.contract import INPUT_SIZE

from slicevote_server.errors import StartupError
from slicevote_server.runtime import onnx_session, openvino_model
from slicevote_server.runtime.interface import DEFAULT_BATCH, Numerics, Runtime
from slicevote_server.runtime.load_limit import load_limit
from slicevote_server.runtime.onnx_session import CPU, CUDA, TENSORRT, OnnxSession
from slicevote_server.runtime.openvino_model import OpenVinoModel
from slicevote_server.runtime.parallel import Threads

logger = logging.getLogger(__name__)

AUTO = "auto"

BF16_MINIMUM_GAIN = 1.4
"""Gain in processor time from which "auto" takes bf16 for a new archive; below it, fp32, which is slightly more exact.

Processors with bf16 units gain 1.6 and more, those without lose, and repeated trials beside busy processes differ by
less than a tenth."""

_TRIAL_SLICES = 8
_TRIAL_MIN_ROUNDS = 5
_TRIAL_MAX_ROUNDS = 20
_TRIAL_S = 2.0
"""Time after which a trial does not begin another round, once it has the minimum."""


@dataclass(frozen=True)
class RuntimeSettings:
    """What backbones run on.

    Attributes:
        provider: One of `PROVIDERS`, or "auto".
        threads: Threads on the CPU; 0 means one per core.
        strict: Refuse to start if the archive was made with other numerics, instead of logging a warning.
        load_timeout_s: Time that loading a backbone may take, in seconds, before the process ends with an error; 0
            means no limit. TensorRT compiles for minutes.
    """

    provider: str = AUTO
    threads: int = 0
    strict: bool = False
    load_timeout_s: float = 600.0


@dataclass(frozen=True)
class Provider:
    """One way to run a backbone.

    Attributes:
        open: Return the runtime of a file, its precision, a number of threads and the usual number of slices per batch.
        numerics: Return the numerics for a file of a given precision.
        is_available: Return whether this machine has what the provider needs, as far as can be told without a file.
    """

    open: Callable[[Path, str, int, int], Runtime]
    numerics: Callable[[str], Numerics]
    is_available: Callable[[], bool]


def _onnxruntime(provider: str) -> Provider:
    return Provider(
        open=lambda path, precision, threads, batch_size: OnnxSession(
            path, precision, provider=provider, threads=threads, batch_size=batch_size
        ),
        numerics=lambda precision: Numerics("onnxruntime", provider, precision),
        is_available=lambda: onnx_session.has_provider(provider),
    )


def _openvino(precision: str, is_available: Callable[[], bool]) -> Provider:
    return Provider(
        open=lambda path, _, threads, batch_size: OpenVinoModel(path, precision, threads=threads),
        numerics=lambda _: Numerics("openvino", openvino_model.DEVICE, precision),
        is_available=is_available,
    )


PROVIDERS: Mapping[str, Provider] = {
    "cpu": _onnxruntime(CPU),
    "cuda": _onnxruntime(CUDA),
    "tensorrt": _onnxruntime(TENSORRT),
    "openvino": _openvino("fp32", openvino_model.is_installed),
    "openvino-bf16": _openvino("bf16", openvino_model.has_bf16),
}


def open_runtime(
    path: Path,
    precision: str,
    settings: RuntimeSettings,
    recorded: Numerics | None = None,
    *,
    batch_size: int = DEFAULT_BATCH,
) -> Runtime:
    """Load a backbone on the provider that was asked for, or on the best one.

    "auto" takes the provider that the archive was made with, so that its vectors and new ones compare. For a new
    archive it takes CUDA if there is a GPU, OpenVINO in bf16 if a trial on this processor shows a clear gain, and ONNX
    Runtime on the CPU otherwise. TensorRT, which compiles for minutes, is used only if asked for.

    Args:
        path: The ONNX file.
        precision: Its precision.
        settings: What to run on.
        recorded: What the archive was made with; None for a new archive.
        batch_size: Most slices that are embedded at once; a GPU computes just as many every time.

    Returns:
        The runtime, which has already computed its first slice.

    Raises:
        StartupError: The provider cannot be used, or its numerics differ from the recorded ones and the settings are
            strict.
    """
    with load_limit(path, settings.load_timeout_s):
        if settings.provider != AUTO:
            runtime = PROVIDERS[settings.provider].open(path, precision, settings.threads, batch_size)
        else:
            runtime = _as_recorded(path, precision, settings, recorded, batch_size) or _best(
                path, precision, settings, batch_size
            )
    if recorded is not None and runtime.numerics != recorded:
        difference = (
            f"{path}: the archive was made in {recorded}, this server embeds in {runtime.numerics}; similarities shift "
            "slightly, and a few slices find another neighbour"
        )
        if settings.strict:
            raise StartupError(
                f"{difference}. Start with the --provider that the archive was made with, or without --strict-numerics"
            )
        logger.warning("%s", difference)
    return runtime


def _as_recorded(
    path: Path, precision: str, settings: RuntimeSettings, recorded: Numerics | None, batch_size: int
) -> Runtime | None:
    for provider in PROVIDERS.values():
        if provider.numerics(precision) == recorded and provider.is_available():
            try:
                return provider.open(path, precision, settings.threads, batch_size)
            except StartupError as error:
                logger.warning("%s", error)
    return None


def _best(path: Path, precision: str, settings: RuntimeSettings, batch_size: int) -> Runtime:
    if PROVIDERS["cuda"].is_available():
        try:
            return PROVIDERS["cuda"].open(path, precision, settings.threads, batch_size)
        except StartupError as error:
            logger.warning("%s", error)
    chosen = "cpu"
    # An int8 file is quantised already; bf16 would only lose more.
    if precision != "int8" and PROVIDERS["openvino-bf16"].is_available():
        try:
            chosen = _faster(path, precision, settings)
        except StartupError as error:
            logger.warning("%s", error)
    return PROVIDERS[chosen].open(path, precision, settings.threads, batch_size)


def _faster(path: Path, precision: str, settings: RuntimeSettings) -> str:
    """Return "openvino-bf16" if a trial shows a clear gain over "cpu", otherwise "cpu"."""
    # Threads that help the workers spin while they wait, which would count as time spent.
    threads = Threads.of(settings.threads).workers
    plain = PROVIDERS["cpu"].open(path, precision, threads, DEFAULT_BATCH)
    quick = PROVIDERS["openvino-bf16"].open(path, precision, threads, DEFAULT_BATCH)
    plain_s, quick_s = _processor_seconds([plain, quick])
    gain = plain_s / quick_s
    chosen = "openvino-bf16" if gain >= BF16_MINIMUM_GAIN else "cpu"
    logger.info(
        "trial for a new archive: %d slices take %.1f ms of processor time in %s and %.1f ms in %s, a gain of %.2f; "
        "bf16 is chosen from %g on. Chosen: %s (--provider sets it)",
        _TRIAL_SLICES,
        plain_s * 1e3,
        plain.numerics,
        quick_s * 1e3,
        quick.numerics,
        gain,
        BF16_MINIMUM_GAIN,
        chosen,
    )
    return chosen


def _processor_seconds(runtimes: Sequence[Runtime]) -> list[float]:
    """Return the least processor time that each runtime took for a batch, in seconds, over interleaved runs.

    Processor time, unlike elapsed time, does not count the time that other processes had the processor. They still slow
    a run down through shared caches and execution units: interleaving treats the runtimes alike, and the least is the
    run that was disturbed least.
    """
    slices = np.random.default_rng(0).random((_TRIAL_SLICES, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
    for runtime in runtimes:
        runtime.embed(slices)
    least = [math.inf] * len(runtimes)
    deadline = time.monotonic() + _TRIAL_S
    for done in range(_TRIAL_MAX_ROUNDS):
        if done >= _TRIAL_MIN_ROUNDS and time.monotonic() > deadline:
            break
        for position, runtime in enumerate(runtimes):
            started = time.process_time()
            runtime.embed(slices)
            least[position] = min(least[position], time.process_time() - started)
    return least
