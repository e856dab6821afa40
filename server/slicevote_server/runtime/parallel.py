"""Batches on a CPU, computed in parallel as small chunks, one thread each.

One thread a chunk beats all threads on one chunk: nobody waits for anybody at the end of every layer, least of all
while decoding takes one of the cores for a moment; and what a small chunk leaves behind stays in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK_SLICES = 2
"""Slices. From one to four differ by some tenth, otherwise for every backbone; eight were slower, or as fast."""

_MOST_WORKERS = 8
"""ParallelBatches at a time; a batch has no more. Cores beyond them share in the chunks."""


@dataclass(frozen=True)
class Threads:
    """How a processor's threads are divided.

    Attributes:
        workers: ParallelBatches that are computed at a time.
        shared: Threads that help them, beyond one for every chunk.
    """

    workers: int
    shared: int

    @classmethod
    def of(cls, count: int) -> Threads:
        """Divides a number of threads; 0 means one for every core that this process may use."""
        count = count or available_cores()
        workers = min(count, _MOST_WORKERS)
        return cls(workers, count - workers)


class ParallelBatches:
    """Computes batches in chunks.

    Args:
        compute: Computes a chunk; called by several threads.
        workers: How many at a time.
    """

    def __init__(self, compute: Callable[[NDArray[np.float32]], NDArray[np.float32]], workers: int) -> None:
        self._compute = compute
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="embedding")

    def compute(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes a batch."""
        size = min(_CHUNK_SLICES, -(-len(slices) // self._workers))
        if len(slices) <= size:
            return self._compute(slices)
        chunks = [slices[start : start + size] for start in range(0, len(slices), size)]
        return np.concatenate(list(self._pool.map(self._compute, chunks)))


def available_cores() -> int:
    """Gives the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
