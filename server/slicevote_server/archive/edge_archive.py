"""The embedded archive: Qdrant Edge in a folder, run by a worker process."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from slicevote.contract import DISK_FULL

from slicevote_server.archive.edge_store import EdgeStore
from slicevote_server.archive.interface import (
    ArchiveIdentity,
    ArchiveSettings,
    IndexedSlices,
    Provenance,
    VolumeRecord,
)
from slicevote_server.archive.worker import Worker
from slicevote_server.errors import Overloaded

logger = logging.getLogger(__name__)

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

_DISK_RETRY_S = 60.0


def _in_worker(
    method: Callable[Concatenate[EdgeStore, P], ResultT],
) -> Callable[Concatenate[EdgeArchive, P], ResultT]:
    """Return a method that calls the store's method in the worker process."""

    @functools.wraps(method)
    def call(self: EdgeArchive, /, *args: P.args, **keywords: P.kwargs) -> ResultT:
        return self._worker.call(method, *args, **keywords)

    return call


class EdgeArchive:
    """An archive in one folder; `interface.Archive` describes its methods.

    Args:
        directory: The folder; created if it does not exist.
        identity: What the archive must have been made for. None opens an existing archive whatever it was made for.
        settings: How the graph is built and searched.

    Raises:
        StartupError: The archive was made for something else, is in use, or cannot be read or written.
    """

    engine = "edge"

    def __init__(
        self, directory: Path, identity: ArchiveIdentity | None, settings: ArchiveSettings | None = None
    ) -> None:
        self._directory = directory
        self._disk_reserve_bytes = (settings or ArchiveSettings()).disk_reserve_bytes
        is_new = not directory.is_dir() or not any(directory.iterdir())
        store = functools.partial(EdgeStore, directory, identity, settings or ArchiveSettings())
        # A restart never makes an archive: if the folder was removed meanwhile, an empty one would hide that.
        self._worker: Worker[EdgeStore] = Worker(
            functools.partial(store, create=identity is not None),
            reopen=functools.partial(store, create=False),
            name=f"archive of {directory.parent.name if identity is None else identity.backbone}",
        )
        if is_new:
            logger.info("made a new, empty archive in %s", directory)
        self.identity = self._worker.call(EdgeStore.made_for)

    @property
    def restart_count(self) -> int:
        """Number of restarts of the worker process."""
        return self._worker.restart_count

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker process."""
        return self._worker.pid

    provenance = _in_worker(EdgeStore.provenance)
    records = _in_worker(EdgeStore.records)
    list_ids = _in_worker(EdgeStore.list_ids)
    label_counts = _in_worker(EdgeStore.label_counts)
    is_empty = _in_worker(EdgeStore.is_empty)
    revisions = _in_worker(EdgeStore.revisions)
    fingerprint = _in_worker(EdgeStore.fingerprint)
    thumbnails = _in_worker(EdgeStore.thumbnails)
    slices = _in_worker(EdgeStore.slices)
    nearest = _in_worker(EdgeStore.nearest)
    rescore = _in_worker(EdgeStore.rescore)
    optimize = _in_worker(EdgeStore.optimize)
    occupancy = _in_worker(EdgeStore.occupancy)

    def record_provenance(self, provenance: Provenance) -> None:
        """Record what the volumes are made with, as far as it is not known yet."""
        self.require_room(0)
        self._worker.call(EdgeStore.record_provenance, provenance)

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Add a volume or replace the one of the same name, durably."""
        slices.require_dimension(self.identity.dimension)
        self.require_room(3 * slices.embeddings.nbytes + 2 * sum(map(len, slices.thumbnails)))
        return self._worker.call(EdgeStore.put, record, slices)

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Remove a volume durably and return its record."""
        # Half of the reserve is kept for deletions: they are how room is made.
        self.require_room(-self._disk_reserve_bytes // 2)
        return self._worker.call(EdgeStore.delete, volume_id)

    def require_room(self, needed_bytes: int) -> None:
        """Check that there is room before anything is written: an archive does not recover from a truncated journal."""
        free, needed = shutil.disk_usage(self._directory).free, needed_bytes + self._disk_reserve_bytes
        if free < needed:
            raise Overloaded(
                f"the archive's disk is full: {free / 1e6:.0f} MB are free and {needed / 1e6:.0f} MB are needed, "
                f"which includes a reserve of {self._disk_reserve_bytes / 1e6:.0f} MB; free some space, then try again",
                reason=DISK_FULL,
                retry_after_s=_DISK_RETRY_S,
            )

    def close(self) -> None:
        """Close the archive and end its process."""
        self._worker.close()
