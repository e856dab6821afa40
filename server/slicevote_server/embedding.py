"""Embedding with dynamic batches over all open streams.

One thread runs the backbone. It takes whatever waits, up to a batch, and never waits for a batch to fill: alone, a
caller is served at once; together, callers share batches.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slicevote_server.runtime import Numerics, Runtime

DEFAULT_BATCH = 8
"""Slices a batch. More gain nothing on a processor and make small requests wait."""


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
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()

    @property
    def numerics(self) -> Numerics:
        """How embeddings are computed."""
        return self._runtime.numerics

    def submit(self, slices: NDArray[np.float32]) -> Future[NDArray[np.float32]]:
        """Asks for embeddings.

        Args:
            slices: float32 [N, 224, 224] in [0, 1], N at least 1.

        Returns:
            A future of float32 [N, D], unit length. Cancelling it before it runs costs nothing more.
        """
        request = _Request(slices)
        self._requests.put(request)
        return request.future

    def close(self) -> None:
        """Ends the thread once what was asked for is done."""
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
                self._runtime.embed(slices[start : start + self._batch_size])
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
