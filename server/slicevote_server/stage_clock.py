"""Stage times of one search or ingest; they add up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """What a search or an ingest spends its time on."""

    DECODING = "decoding"
    EMBEDDING = "embedding"
    SEARCHING = "searching"
    WAITING = "waiting"


@dataclass(frozen=True)
class StageTimes:
    """Time per stage, in seconds. The stages add up to the total at most; the rest went into none of them.

    Attributes:
        decoding_s: Decoding, windowing and resampling.
        embedding_s: In the backbone, including batches shared with other calls.
        searching_s: In the index; for an ingest, writing.
        waiting_s: Waiting for the client's slices while nothing else was under way.
        total_s: From the start to the result.
    """

    decoding_s: float
    embedding_s: float
    searching_s: float
    waiting_s: float
    total_s: float


class StageClock:
    """Divides elapsed time among the stages that are running; may be used from several threads.

    Slices are decoded, embedded and looked up side by side, so summing over them would count a moment several times.
    Here every moment counts once: stages that run at the same time share it equally, and waiting counts only while
    nothing else runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = self._settled = time.perf_counter()
        self._running = dict.fromkeys(Stage, 0)
        self._seconds = dict.fromkeys(Stage, 0.0)

    @contextlib.contextmanager
    def running(self, stage: Stage) -> Iterator[None]:
        """Count the time in this context as the stage's."""
        self._change(stage, 1)
        try:
            yield
        finally:
            self._change(stage, -1)

    def times(self) -> StageTimes:
        """Return the times up to now."""
        with self._lock:
            self._settle()
            return StageTimes(
                decoding_s=self._seconds[Stage.DECODING],
                embedding_s=self._seconds[Stage.EMBEDDING],
                searching_s=self._seconds[Stage.SEARCHING],
                waiting_s=self._seconds[Stage.WAITING],
                total_s=self._settled - self._started,
            )

    def _change(self, stage: Stage, by: int) -> None:
        with self._lock:
            self._settle()
            self._running[stage] += by

    def _settle(self) -> None:
        now = time.perf_counter()
        elapsed, self._settled = now - self._settled, now
        working: list[Stage] = [stage for stage in Stage if self._running[stage] and stage is not Stage.WAITING]
        for stage in working or ([Stage.WAITING] if self._running[Stage.WAITING] else []):
            self._seconds[stage] += elapsed / max(1, len(working))
