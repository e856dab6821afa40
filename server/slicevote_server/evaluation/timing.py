"""Where the time of an evaluation goes, beside what the embedding alone would take."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slicevote_server.runtime import Runtime

# A small share of the run is spent on measuring, a smaller one of what goes beyond the first minutes.
_SHARE = 0.06
_LONG_RUN_S = 120.0
_LONG_RUN_SHARE = 0.01
_KEPT_BATCHES = 4


@dataclass
class Times:
    """The account of one backbone.

    Attributes:
        seconds: By stage; stages overlap.
        embedded_slices: Slices that this run embedded.
        reused_slices: Slices whose embeddings an earlier run left.
        searched_slices: Query slices that this run looked up, by index.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    embedded_slices: int = 0
    reused_slices: int = 0
    searched_slices: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.perf_counter() - started


class BareEmbedding:
    """Times the backbone alone, on prepared batches of the run itself, again and again while the run goes on.

    The machine's speed changes over a run; short measurements spread over it see the same machine as the run does.

    Args:
        runtime: What computes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._kept: list[NDArray[np.float32]] = []
        self._started = time.perf_counter()
        self._slices = 0
        self.seconds = 0.0
        """Time that the measurements took; not part of the evaluation."""

    def offer(self, batch: NDArray[np.float32]) -> None:
        """Keeps a batch to measure with; a few are kept, spread over the run."""
        self._kept = [*self._kept[-_KEPT_BATCHES + 1 :], batch]

    def is_due(self) -> bool:
        """Tells whether it is time to measure."""
        elapsed_s = time.perf_counter() - self._started
        allowed_s = _SHARE * min(elapsed_s, _LONG_RUN_S) + _LONG_RUN_SHARE * max(0.0, elapsed_s - _LONG_RUN_S)
        return len(self._kept) == _KEPT_BATCHES and self.seconds < allowed_s

    def measure(self) -> None:
        """Embeds what is kept; nothing else of the run may be working."""
        if not self._kept:
            return
        started = time.perf_counter()
        for batch in self._kept:
            self._runtime.embed(batch)
        self._slices += sum(map(len, self._kept))
        self.seconds += time.perf_counter() - started

    @property
    def measured_slices(self) -> int:
        """Slices of the sample, counted as often as they were embedded."""
        return self._slices

    def estimate_s(self, slices: int) -> float | None:
        """Says how long this many slices would take; None where nothing was measured."""
        return slices * self.seconds / self._slices if self._slices else None
