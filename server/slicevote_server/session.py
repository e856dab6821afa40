"""The part that searches and ingests share: checking, preparing and embedding the slices of one volume."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Slice

from slicevote_server.embedding import Embedder
from slicevote_server.errors import Cancelled
from slicevote_server.intake import Intake
from slicevote_server.intensity import GreySlice
from slicevote_server.stage_clock import Stage, StageClock


@dataclass(frozen=True)
class EmbeddedSlices:
    """What became of some slices of a session.

    Attributes:
        prepared: All of them; those without grey values are blank.
        visible: Those that are not blank, in the same order.
        embeddings: For every embedder of the session float32 [N, D], unit length, one row for every visible slice.
    """

    prepared: tuple[GreySlice, ...]
    visible: tuple[GreySlice, ...]
    embeddings: tuple[NDArray[np.float32], ...]


class Session:
    """Takes the planned slices of one volume: checks, prepares and embeds them. May be used from several threads.

    Args:
        intake: Checks the slices against the plan and prepares them.
        embedders: What embeds them.
    """

    def __init__(self, intake: Intake, embedders: Sequence[Embedder]) -> None:
        self.intake = intake
        self.clock = StageClock()
        self._embedders = tuple(embedders)
        self._lock = threading.Lock()
        self._futures: set[Future[NDArray[np.float32]]] = set()
        self._cancelled = False

    @property
    def plan(self) -> tuple[int, ...]:
        """Indices of the slices that are wanted, in the order in which they are wanted."""
        return self.intake.plan

    def take(self, slices: Iterable[Slice]) -> EmbeddedSlices:
        """Prepare and embed planned slices.

        Raises:
            InvalidInput: A slice cannot be used.
            Cancelled: `cancel` was called.
        """
        with self.clock.running(Stage.DECODING):
            prepared = tuple(self.intake.take(slices))
        visible = tuple(entry for entry in prepared if entry.grey is not None)
        embeddings: tuple[NDArray[np.float32], ...] = ()
        if visible:
            with self.clock.running(Stage.EMBEDDING):
                embeddings = self._embed(np.stack([entry.grey for entry in visible if entry.grey is not None]))
        return EmbeddedSlices(prepared, visible, embeddings)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Hold off `cancel` for as long as the context lasts: what is recorded in it is recorded before that.

        Raises:
            Cancelled: `cancel` was called.
        """
        with self._lock:
            if self._cancelled:
                raise Cancelled
            yield

    def cancel(self) -> None:
        """Take no more slices, and drop those that wait for a backbone.

        What is under way on another thread ends with `Cancelled`; nothing is recorded any more once this returns.
        """
        with self._lock:
            self._cancelled = True
            futures = tuple(self._futures)
        for future in futures:
            future.cancel()

    def _embed(self, grey: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with self.open():
            futures = tuple(embedder.submit(grey) for embedder in self._embedders)
            self._futures.update(futures)
        try:
            return tuple(future.result() for future in futures)
        except CancelledError as error:
            raise Cancelled from error
        finally:
            with self._lock:
                self._futures.difference_update(futures)
