"""One backbone with its embedder and its archive: what a search needs, and what an ingest feeds."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import Archive
from slicevote_server.backbone import Backbone
from slicevote_server.embedding import Embedder
from slicevote_server.errors import Cancelled
from slicevote_server.intensity import GreySlice


@dataclass(frozen=True)
class Holding:
    """A backbone and everything that was embedded with it."""

    backbone: Backbone
    embedder: Embedder
    archive: Archive

    def close(self) -> None:
        """Ends the embedder and closes the archive."""
        self.embedder.close()
        self.archive.close()


def stack(slices: list[GreySlice]) -> NDArray[np.float32]:
    """Gives the grey values of slices that are not blank, float32 [N, 224, 224]."""
    return np.stack([entry.grey for entry in slices if entry.grey is not None])


def result_of(future: Future[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Waits for embeddings.

    Raises:
        Cancelled: Nobody wants them any more.
    """
    try:
        return future.result()
    except CancelledError as error:
        raise Cancelled from error
