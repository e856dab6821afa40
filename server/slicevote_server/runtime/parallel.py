"""Parallel computation of a batch on a CPU: small chunks, one thread each.

One thread per chunk is faster than all threads on one chunk: no thread waits for the others at the end of every layer,
least of all while decoding takes one of the cores, and a small chunk's intermediate results stay in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import INPUT_SIZE

_CHUNK_SLICES = 2
"""Slices per chunk. Sizes from one to four differ by about a tenth, differently for every backbone; eight is no
faster."""

_MAX_WORKERS = 8
"""Chunks computed at the same time; a batch has no more. Further cores share in the computation of each chunk."""


@dataclass(frozen=True)
class Threads:
    """Division of the CPU's threads.

    Attributes:
        workers: Chunks computed at the same time.
        shared: Threads that help the workers, beyond one for each of them.
    """

    workers: int
    shared: int

    @classmethod
    def of(cls, count: int) -> Threads:
        """Divide `count` threads; 0 means one for every core that this process may use."""
        count = count or available_cores()
        workers = min(count, _MAX_WORKERS)
        return cls(workers, count - workers)


class ParallelBatches:
    """Compute batches in chunks, several at the same time.

    The constructor computes one slice in the calling thread before any other thread exists: native libraries set
    themselves up in their first call, and two first calls at the same time can block each other forever. In
    OpenVINO's Python layer, one holds the interpreter lock and waits for a C++ static initialisation guard, the other
    holds the guard and waits for the lock.

    Args:
        compute: Compute one chunk, float32 [N, 224, 224] to float32 [N, D]; called from several threads.
        workers: Chunks computed at the same time.

    Raises:
        Exception: Whatever `compute` raises for its first slice.
    """

    def __init__(self, compute: Callable[[NDArray[np.float32]], NDArray[np.float32]], workers: int) -> None:
        compute(np.zeros((1, INPUT_SIZE, INPUT_SIZE), np.float32))
        self._compute = compute
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="embedding")

    def compute(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the result of a batch float32 [N, 224, 224] as float32 [N, D]."""
        size = min(_CHUNK_SLICES, -(-len(slices) // self._workers))
        if len(slices) <= size:
            return self._compute(slices)
        chunks = [slices[start : start + size] for start in range(0, len(slices), size)]
        return np.concatenate(list(self._pool.map(self._compute, chunks)))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
