"""The embedded archive: Qdrant Edge in a directory, run by a worker process."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.edge import EdgeSettings, EdgeStore
from slicevote_server.archive.interface import (
    EVERYTHING,
    ArchiveIdentity,
    IndexedSlices,
    Neighbours,
    Occupancy,
    Scope,
    VolumeRecord,
)
from slicevote_server.archive.worker import Worker
from slicevote_server.errors import Overloaded
from slicevote_server.runtime.interface import Numerics
from slicevote_server.voting import Hit

logger = logging.getLogger(__name__)

_DISK_RESERVE_BYTES = 64 << 20
_DISK_RETRY_S = 60.0


class EmbeddedArchive:
    """An archive in one directory; see `interface.Archive` for what the methods do.

    Args:
        directory: Where it lies; created if it is not there.
        identity: What it must have been made with.
        settings: How the graph is built and searched.

    Raises:
        StartupError: It was made with something else, is open elsewhere, or cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        identity: ArchiveIdentity,
        settings: EdgeSettings | None = None,
    ) -> None:
        self._directory = directory
        self.identity = identity
        is_new = not directory.is_dir() or not any(directory.iterdir())
        store = functools.partial(EdgeStore, directory, identity, settings or EdgeSettings())
        # A restart never makes an archive: where the folder was removed meanwhile, an empty one would hide that.
        self._worker = Worker(
            store, reopen=functools.partial(store, create=False), name=f"archive of {identity.backbone}"
        )
        if is_new:
            logger.info("made a new, empty archive in %s", directory)

    @property
    def restart_count(self) -> int:
        """How often the worker process has been restarted."""
        return self._worker.restart_count

    @property
    def worker_pid(self) -> int | None:
        """The worker process's id."""
        return self._worker.pid

    def numerics(self) -> Numerics | None:
        """Gives what its vectors are computed with; None for one that has none."""
        return cast("Numerics | None", self._worker.call("numerics"))

    def record_numerics(self, numerics: Numerics) -> None:
        """Writes down what its vectors are computed with, unless that is known already."""
        self.require_room(0)
        self._worker.call("record_numerics", numerics)

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Adds or replaces a volume, durably."""
        self.require_room(3 * slices.embeddings.nbytes + 2 * sum(map(len, slices.thumbnails)))
        return cast("bool", self._worker.call("put", record, slices))

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Takes a volume out, durably."""
        # Part of the reserve is for this: it is how room is made.
        self.require_room(-_DISK_RESERVE_BYTES // 2)
        return cast("VolumeRecord | None", self._worker.call("delete", volume_id))

    def records(self, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
        """Gives the records of those volumes that are there."""
        return cast("dict[str, VolumeRecord]", self._worker.call("records", volume_ids))

    def list_ids(self, labels: Sequence[tuple[str, tuple[str, ...]]] = ()) -> list[str]:
        """Gives the names of all volumes with these labels, in order."""
        return cast("list[str]", self._worker.call("list_ids", labels))

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return the labels of all volumes, their values, and how many volumes have each."""
        return cast("dict[str, dict[str, int]]", self._worker.call("label_counts"))

    def is_empty(self) -> bool:
        """Tells whether there is no volume."""
        return cast("bool", self._worker.call("is_empty"))

    def revisions(self) -> dict[str, int]:
        """Gives the revision of every volume."""
        return cast("dict[str, int]", self._worker.call("revisions"))

    def fingerprint(self) -> int:
        """Gives the exclusive or of all revisions."""
        return cast("int", self._worker.call("fingerprint"))

    def thumbnails(self, record: VolumeRecord, indices: Collection[int]) -> dict[int, bytes]:
        """Gives the thumbnails of those of the slices that have one."""
        return cast("dict[int, bytes]", self._worker.call("thumbnails", record, list(indices)))

    def slices(self, record: VolumeRecord) -> IndexedSlices:
        """Gives the indexed slices of a volume with their vectors."""
        return cast("IndexedSlices", self._worker.call("slices", record))

    def nearest(
        self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING, exact: bool = False
    ) -> Neighbours:
        """Looks up the nearest slices by cosine."""
        found = self._worker.call("nearest", queries, neighbours=neighbours, scope=scope, exact=exact)
        return cast("Neighbours", found)

    def rescore(
        self, queries: NDArray[np.float32], candidates: Sequence[Sequence[tuple[int, int]]], *, neighbours: int
    ) -> list[list[Hit]]:
        """Compares every query with its own candidates by cosine."""
        return cast("list[list[Hit]]", self._worker.call("rescore", queries, candidates, neighbours=neighbours))

    def occupancy(self) -> Occupancy:
        """Tells how full the archive is."""
        return cast("Occupancy", self._worker.call("occupancy"))

    def optimize(self) -> None:
        """Builds the graph over everything now; the archive does so by itself when it is idle."""
        self._worker.call("optimize")

    def require_room(self, needed_bytes: int) -> None:
        """Insists on room before anything is written: an archive does not recover from a log that breaks off."""
        if shutil.disk_usage(self._directory).free < needed_bytes + _DISK_RESERVE_BYTES:
            raise Overloaded(
                "there is no room left on the archive's disk; free some, then try again", retry_after_s=_DISK_RETRY_S
            )

    def close(self) -> None:
        """Closes the archive and ends its process."""
        self._worker.close()
