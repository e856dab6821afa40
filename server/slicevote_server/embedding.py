"""Embedding with dynamic batches over all open streams.

One thread runs the backbone. It takes whatever waits, up to a batch, and never waits for a batch to fill: alone, a
caller is served at once; together, callers share batches.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slicevote_server.runtime import DEFAULT_BATCH, Numerics, Runtime


@dataclass(frozen=True)
class EmbedderLoad:
    """What an embedder has done since it was made, and what waits.

    Attributes:
        slice_count: Slices that it has embedded.
        batch_count: In how many batches.
        busy_s: Time that the backbone took for them.
        waiting_slice_count: Slices that it has been asked for and has not begun with.
    """

    slice_count: int = 0
    batch_count: int = 0
    busy_s: float = 0.0
    waiting_slice_count: int = 0


@dataclass
class _Request:
    slices: NDArray[np.float32]
    future: Future[NDArray[np.float32]] = field(default_factory=Future)


class Embedder:
    """Shares a runtime between threads.

    Args:
        runtime: What computes.
        batch_size: Most slices that are computed at once.
    """

    def __init__(self, runtime: Runtime, *, batch_size: int = DEFAULT_BATCH) -> None:
        self._runtime = runtime
        self._batch_size = batch_size
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._load = EmbedderLoad()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()

    @property
    def numerics(self) -> Numerics:
        """How embeddings are computed."""
        return self._runtime.numerics

    def load(self) -> EmbedderLoad:
        """Return what has been embedded so far, and how much waits."""
        with self._lock:
            return self._load

    def submit(self, slices: NDArray[np.float32]) -> Future[NDArray[np.float32]]:
        """Request embeddings.

        Args:
            slices: float32 [N, 224, 224] in [0, 1], N at least 1.

        Returns:
            A future of float32 [N, D], unit length. Cancelling it before it runs costs nothing more.
        """
        request = _Request(slices)
        with self._lock:
            if self._closed:
                request.future.cancel()
                return request.future
            self._count(waiting=len(slices))
            self._requests.put(request)
        return request.future

    def close(self) -> None:
        """End the thread once all requests so far are done; later requests are cancelled."""
        with self._lock:
            self._closed = True
            self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: deque[_Request] = deque()
        while True:
            request = self._requests.get()
            if request is None:
                return
            waiting.append(request)
            closing = False
            # Whatever has come in meanwhile shares the batch.
            while sum(len(entry.slices) for entry in waiting) < self._batch_size:
                try:
                    more = self._requests.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    closing = True
                    break
                waiting.append(more)
            self._count(waiting=-sum(len(entry.slices) for entry in waiting))
            # A caller that has gone away is dropped here, before it costs anything.
            self._compute([entry for entry in waiting if entry.future.set_running_or_notify_cancel()])
            waiting.clear()
            if closing:
                return

    def _compute(self, requests: list[_Request]) -> None:
        if not requests:
            return
        try:
            slices = (
                np.concatenate([request.slices for request in requests]) if len(requests) > 1 else requests[0].slices
            )
            parts = [
                self._embed(slices[start : start + self._batch_size])
                for start in range(0, len(slices), self._batch_size)
            ]
            embeddings = np.concatenate(parts) if len(parts) > 1 else parts[0]
        except Exception as error:  # noqa: BLE001  whatever the runtime raises belongs to the callers, not to this thread
            for request in requests:
                request.future.set_exception(error)
            return
        start = 0
        for request in requests:
            request.future.set_result(embeddings[start : start + len(request.slices)])
            start += len(request.slices)

    def _embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        started = time.perf_counter()
        embeddings = self._runtime.embed(slices)
        self._count(slices=len(slices), batches=1, busy_s=time.perf_counter() - started)
        return embeddings

    def _count(self, *, slices: int = 0, batches: int = 0, busy_s: float = 0.0, waiting: int = 0) -> None:
        with self._lock:
            load = self._load
            self._load = EmbedderLoad(
                slice_count=load.slice_count + slices,
                batch_count=load.batch_count + batches,
                busy_s=load.busy_s + busy_s,
                waiting_slice_count=load.waiting_slice_count + waiting,
            )
