"""Locking and opening the Qdrant Edge shard of an archive, and what is wrong where that fails."""

from __future__ import annotations

from pathlib import Path

import qdrant_edge as edge

from slicevote_server.archive import points
from slicevote_server.archive.data_folder import make_writable_folder
from slicevote_server.archive.interface import ArchiveIdentity, ArchiveSettings
from slicevote_server.archive.process_lock import LockHeld, ProcessLock
from slicevote_server.errors import StartupError

_LOCK_TIMEOUT_S = 60.0


def lock_archive(directory: Path, *, create: bool) -> ProcessLock:
    """Take the lock of an archive, before anything of Edge touches it.

    Loading a shard that another process has open deletes that process's journal files. A server holds the lock of its
    data folder, so whoever has this one is on the way out: the archive's process of a server that was killed.

    Raises:
        StartupError: The folder is missing or cannot be written, or the lock is not released in time.
    """
    if create:
        make_writable_folder(directory)
    elif not directory.is_dir() or not any(directory.iterdir()):
        raise StartupError(f"the archive in {directory} is gone; put the folder back, then start the server again")
    try:
        return ProcessLock(directory.with_suffix(".lock"), timeout_s=_LOCK_TIMEOUT_S)
    except LockHeld as error:
        raise StartupError(
            f"the archive in {directory} is still in use by {error.holder}: end that process, then start again"
        ) from error


def open_shard(directory: Path, identity: ArchiveIdentity | None, settings: ArchiveSettings) -> edge.EdgeShard:
    """Open the shard in a folder whose lock is held, or make it in an empty folder.

    Args:
        directory: The folder.
        identity: What the archive is for; None opens an existing shard as it was made.
        settings: How the graph is built and searched; ignored without an identity.

    Raises:
        StartupError: The shard is damaged, or open in another program.
    """
    exists = any(directory.iterdir())
    try:
        if identity is None:
            # Without a configuration, Edge keeps the one that the shard was made with.
            return edge.EdgeShard.load(str(directory))
        config = _config(identity.dimension, settings)
        return edge.EdgeShard.load(str(directory), config) if exists else edge.EdgeShard.create(str(directory), config)
    except Exception as error:
        # Edge raises plain exceptions; only their text tells them apart.
        if "failed to open WAL" not in str(error):
            raise StartupError(
                f"the archive in {directory} is damaged ({error}); restore the folder from a backup, or move it away "
                "and ingest again"
            ) from error
        if "WouldBlock" in str(error):
            raise StartupError(
                f"the archive in {directory} is open in a program other than slicevote; close it there, then start "
                "again"
            ) from error
        # Every acknowledged volume was flushed to the segments, so nothing is lost with the journal.
        raise StartupError(
            f"the journal of the archive in {directory} is damaged ({error}). Move the folder {directory / 'wal'} "
            "away and start again: every acknowledged volume is stored outside of it"
        ) from error


def _config(dimension: int, settings: ArchiveSettings) -> edge.EdgeConfig:
    return edge.EdgeConfig(
        vectors={points.VECTOR: edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Cosine)},
        hnsw_config=edge.HnswIndexConfig(m=settings.m, ef_construct=settings.ef_construct, full_scan_threshold=1000),
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=settings.segment_count, indexing_threshold=settings.indexing_threshold_kb
        ),
    )
