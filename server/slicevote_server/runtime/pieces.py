"""A batch on a processor: in small pieces, side by side, one thread each.

One thread a piece beats all threads on one piece: nobody waits for anybody at the end of every layer, least of all
while decoding takes one of the cores for a moment; and what a small piece leaves behind stays in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PIECE = 2
"""Slices. From one to four differ by some tenth, otherwise for every backbone; eight were slower, or as fast."""

_MOST_WORKERS = 8
"""Pieces at a time; a batch has no more. Cores beyond them share in the pieces."""


@dataclass(frozen=True)
class Threads:
    """How a processor's threads are divided.

    Attributes:
        workers: Pieces that are computed at a time.
        shared: Threads that help them, beyond one for every piece.
    """

    workers: int
    shared: int

    @classmethod
    def of(cls, count: int) -> Threads:
        """Divides a number of threads; 0 means one for every core that this process may use."""
        count = count or available_cores()
        workers = min(count, _MOST_WORKERS)
        return cls(workers, count - workers)


class Pieces:
    """Computes batches piece by piece.

    Args:
        compute: Computes a piece; called by several threads.
        workers: How many at a time.
    """

    def __init__(self, compute: Callable[[NDArray[np.float32]], NDArray[np.float32]], workers: int) -> None:
        self._compute = compute
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pieces")

    def compute(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes a batch."""
        size = min(_PIECE, -(-len(slices) // self._workers))
        if len(slices) <= size:
            return self._compute(slices)
        pieces = [slices[start : start + size] for start in range(0, len(slices), size)]
        return np.concatenate(list(self._pool.map(self._compute, pieces)))


def available_cores() -> int:
    """Gives the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
