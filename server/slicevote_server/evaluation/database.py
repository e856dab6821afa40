"""The archive that is searched: brought to hold the evaluation's database volumes and no others."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from slicevote_server.archive.interface import (
    Archive,
    ArchiveIdentity,
    ArchiveSettings,
    IndexedSlices,
    Provenance,
    VolumeRecord,
)
from slicevote_server.archive.lsh import LshIndex, LshSettings
from slicevote_server.archive.opening import open_archive
from slicevote_server.archive.points import REVISION_LIMIT
from slicevote_server.evaluation.datasets import Source
from slicevote_server.evaluation.published import MODALITY
from slicevote_server.evaluation.store import EmbeddingStore, VolumeSlices
from slicevote_server.evaluation.timing import Times
from slicevote_server.runtime import Numerics


class Database:
    """The archive and its LSH index, filled in the background; a context manager that closes them.

    A volume's revision is made of its content, so that an archive that a killed run left is known to hold it.

    Args:
        folder: Where they lie.
        identity: What the archive is made with.
        numerics: What its vectors are computed with.
        store: Where the vectors come from.
        lsh: How the LSH index works; None for none.
        edge: How the graph is built and searched.
        times: Where the time is written down.
    """

    def __init__(
        self,
        folder: Path,
        identity: ArchiveIdentity,
        numerics: Numerics,
        store: EmbeddingStore,
        lsh: LshSettings | None,
        edge: ArchiveSettings,
        times: Times,
    ) -> None:
        self._store = store
        self._times = times
        self.lock = threading.Lock()
        """Held while a volume is written."""
        self.revisions: dict[str, int] = {}
        """Every volume of the database and its revision."""
        self._writing: list[Future[None]] = []
        self._writer = ThreadPoolExecutor(1, "database")
        # Opening takes seconds, most of them waiting; embedding need not wait for it.
        self._opening = self._writer.submit(_open, folder, identity, numerics, edge, lsh, times)

    @property
    def archive(self) -> Archive:
        """The archive."""
        return self._opening.result().archive

    @property
    def lsh(self) -> LshIndex | None:
        """Its LSH index, if there is one."""
        return self._opening.result().lsh

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(cancel_futures=True)
        if not self._opening.cancelled() and self._opening.exception() is None:
            try:
                if self.lsh is not None and kind is None:
                    self.lsh.close()
            finally:
                self.archive.close()

    def add(self, source: Source, volumes: Sequence[VolumeSlices]) -> None:
        """Takes the volumes of a source whose vectors are in the store; they are written in the background.

        Raises:
            StartupError: The archive could not be opened.
        """
        if self._opening.done():
            self._opening.result()
        for ordinal, volume in enumerate(volumes):
            name = volume_name(source, ordinal, len(volumes))
            revision = _revision(name, source, volume)
            self.revisions[name] = revision
            self._writing.append(self._writer.submit(self._write, name, revision, source, ordinal))

    def complete(self) -> None:
        """Waits until everything is written, takes out what does not belong, and builds the graph.

        Raises:
            StartupError: The archive could not be opened.
            ArchiveUnavailable: Its engine stopped.
            Overloaded: There is no room on the disk.
        """
        with self._times.stage("waiting for the archive"):
            for future in self._writing:
                future.result()
            self._writing.clear()
            for name in sorted(set(self._opening.result().revisions) - set(self.revisions)):
                record = self.archive.delete(name)
                if record is not None and self.lsh is not None:
                    self.lsh.remove(record)
        with self._times.stage("graph"):
            self.archive.optimize()

    def _write(self, name: str, revision: int, source: Source, ordinal: int) -> None:
        if self._opening.result().revisions.get(name) == revision:
            return
        with self.lock, self._times.stage("writing the archive"):
            embedded = self._store.load(source.key)
            volume = embedded.volumes[ordinal]
            record = VolumeRecord(
                volume_id=name,
                modality=source.labels[MODALITY],
                labels={level: label for level, label in source.labels.items() if label},
                patient_key="",
                source="",
                study_instance_uid="",
                series_instance_uid="",
                positions_mm=volume.positions_mm,
                indexed_slices=volume.indices,
                sop_instance_uids=("",) * len(volume.indices),
                blank_slice_count=volume.blank_count,
                ingested_at=datetime.now(UTC),
                revision=revision,
            )
            count = len(volume.indices)
            slices = IndexedSlices(volume.indices, embedded.embeddings[embedded.rows(ordinal)], (b"",) * count)
            self.archive.put(record, slices)
            if self.lsh is not None:
                self.lsh.add(record, slices)


@dataclass(frozen=True)
class _Opened:
    """What was found: the archive, its LSH index, and the volumes that an earlier run left in it."""

    archive: Archive
    lsh: LshIndex | None
    revisions: dict[str, int]


def _open(
    folder: Path,
    identity: ArchiveIdentity,
    numerics: Numerics,
    edge: ArchiveSettings,
    lsh: LshSettings | None,
    times: Times,
) -> _Opened:
    with times.stage("opening the archive"):
        archive = open_archive(folder / "edge", identity, edge)
        try:
            archive.record_provenance(Provenance(numerics))
            index = LshIndex.open(folder / "lsh", archive, lsh) if lsh is not None else None
            return _Opened(archive, index, archive.revisions())
        except BaseException:
            archive.close()
            raise


def volume_name(source: Source, ordinal: int, count: int) -> str:
    """Names a volume of a source that holds `count` of them."""
    return source.name if count == 1 else f"{source.name}:{ordinal}"


def source_names(
    sources: Sequence[Source], volumes: Mapping[str, Sequence[VolumeSlices]]
) -> dict[str, tuple[Source, int]]:
    """Gives every volume's source and its place in it, by the volume's name.

    Args:
        sources: The sources.
        volumes: The volumes of every source, by its name.
    """
    return {
        volume_name(source, ordinal, len(volumes[source.name])): (source, ordinal)
        for source in sources
        for ordinal in range(len(volumes[source.name]))
    }


def _revision(name: str, source: Source, volume: VolumeSlices) -> int:
    parts = json.dumps([name, source.key, sorted(source.labels.items()), len(volume.indices)])
    return 1 + int.from_bytes(hashlib.sha256(parts.encode()).digest()[:8]) % (REVISION_LIMIT - 1)
