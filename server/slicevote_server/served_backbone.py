"""A backbone as the server runs it: its embedder, its archive and the archive's side index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import (
    EVERYTHING,
    Archive,
    Index,
    IndexedSlices,
    Neighbours,
    Scope,
    VolumeRecord,
)
from slicevote_server.archive.lsh import LshIndex
from slicevote_server.backbone import Backbone
from slicevote_server.embedding import Embedder
from slicevote_server.errors import NotReady


@dataclass(frozen=True)
class ServedBackbone:
    """A backbone and everything that was embedded with it."""

    backbone: Backbone
    embedder: Embedder
    archive: Archive
    lsh: LshIndex | None = None

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Adds or replaces a volume in the archive, durably, and in the side index. Tells whether it replaced one."""
        # With the first volume: an archive without any was made with nothing yet.
        self.archive.record_numerics(self.embedder.numerics)
        replaced = self.archive.put(record, slices)
        if self.lsh is not None:
            self.lsh.add(record, slices)
        return replaced

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Takes a volume out of the archive, durably, and out of the side index. Gives what it was."""
        record = self.archive.delete(volume_id)
        if record is not None and self.lsh is not None:
            self.lsh.remove(record)
        return record

    def nearest(
        self, queries: NDArray[np.float32], *, index: Index, neighbours: int = 1, scope: Scope = EVERYTHING
    ) -> Neighbours:
        """Looks up the nearest slices in one of the indexes.

        Raises:
            NotReady: There is no such index.
        """
        if index is not Index.LSH:
            return self.archive.nearest(queries, neighbours=neighbours, scope=scope, exact=index is Index.EXACT)
        if self.lsh is None:
            raise NotReady("this server was started without the LSH index (--no-lsh)", reason="LSH_NOT_THERE")
        return self.lsh.nearest(queries, neighbours=neighbours, scope=scope)

    def close(self) -> None:
        """Ends the embedder and closes the archive and its side index."""
        self.embedder.close()
        try:
            if self.lsh is not None:
                self.lsh.close()
        finally:
            self.archive.close()
