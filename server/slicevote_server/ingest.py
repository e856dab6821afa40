"""An ingest: one object from header to record.

Nothing is written before the whole volume is there: a volume that breaks off leaves nothing, because nothing was.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Slice

from slicevote_server.archive.interface import IndexedSlices, VolumeRecord
from slicevote_server.archive.points import REVISION_LIMIT
from slicevote_server.intake import Intake, StageTimes, VolumeHeader
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.sampling import AllSlices, SamplingScheme, plan
from slicevote_server.served_backbone import ServedBackbone, result_of, stack


@dataclass(frozen=True)
class IngestRequest:
    """What is ingested; fields as in the message IngestHeader."""

    volume: VolumeHeader
    labels: Mapping[str, str] = field(default_factory=dict)
    patient_key: str = ""
    source: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sampling: SamplingScheme = field(default_factory=AllSlices)


@dataclass(frozen=True)
class IngestResult:
    """A volume is in every archive."""

    record: VolumeRecord
    replaced: bool
    times: StageTimes


@dataclass
class _Kept:
    """What is kept of a slice until the whole volume is there."""

    thumbnail: bytes
    sop_instance_uid: str
    embeddings: list[NDArray[np.float32]]


class Ingest:
    """One ingest, into the archives of all backbones from one decode.

    Args:
        request: What is ingested.
        backbones: Where it goes.
        policy: How grey values are made of pixels.
        thumbnails: Keep a thumbnail of every slice.
        writing: Held while the volume is written to all archives.
    """

    def __init__(
        self,
        request: IngestRequest,
        backbones: Sequence[ServedBackbone],
        policy: IntensityPolicy,
        *,
        thumbnails: bool,
        writing: threading.Lock,
    ) -> None:
        self._request = request
        self._backbones = tuple(backbones)
        self.plan = plan(request.sampling, request.volume.positions_mm)
        self.intake = Intake(request.volume, self.plan, policy, thumbnails=thumbnails)
        self._writing = writing
        self._lock = threading.Lock()
        self._kept: dict[int, _Kept] = {}
        self._futures: set[Future[NDArray[np.float32]]] = set()

    @property
    def embedded_count(self) -> int:
        """Slices that have come in and been embedded, blank ones included."""
        return len(self._kept) + self.intake.blank_count

    def add(self, slices: Iterable[Slice]) -> None:
        """Takes planned slices: prepares and embeds them.

        Raises:
            InvalidInput: A slice cannot be used.
            Cancelled: `cancel` was called.
        """
        visible = [entry for entry in self.intake.take(slices) if entry.grey is not None]
        if not visible:
            return
        started = time.perf_counter()
        grey = stack(visible)
        futures = [served.embedder.submit(grey) for served in self._backbones]
        with self._lock:
            self._futures.update(futures)
        try:
            embeddings = [result_of(future) for future in futures]
        finally:
            with self._lock:
                self._futures.difference_update(futures)
        self.intake.embedded(time.perf_counter() - started)
        with self._lock:
            for place, entry in enumerate(visible):
                rows = [matrix[place] for matrix in embeddings]
                self._kept[entry.index] = _Kept(entry.thumbnail, entry.sop_instance_uid, rows)

    def commit(self) -> IngestResult:
        """Writes the volume; when this returns it is on the disk.

        Raises:
            InvalidInput: Planned slices are missing.
            ArchiveUnavailable: The archive's engine stopped; the volume may or may not be there, send it again.
            Overloaded: There is no room on the disk.
        """
        self.intake.require_complete()
        request = self._request
        indices = tuple(sorted(self._kept))
        record = VolumeRecord(
            volume_id=request.volume.volume_id,
            modality=request.volume.modality,
            labels=dict(request.labels),
            patient_key=request.patient_key,
            source=request.source,
            study_instance_uid=request.study_instance_uid,
            series_instance_uid=request.series_instance_uid,
            positions_mm=request.volume.positions_mm,
            indexed_slices=indices,
            sop_instance_uids=tuple(self._kept[index].sop_instance_uid for index in indices),
            blank_slice_count=self.intake.blank_count,
            ingested_at=datetime.now(UTC),
            revision=1 + secrets.randbelow(REVISION_LIMIT - 1),
        )
        thumbnails = tuple(self._kept[index].thumbnail for index in indices)
        started = time.perf_counter()
        replaced = False
        with self._writing:
            for place, served in enumerate(self._backbones):
                rows = [self._kept[index].embeddings[place] for index in indices]
                embeddings = np.stack(rows) if rows else np.empty((0, served.backbone.dimension), np.float32)
                replaced |= served.put(record, IndexedSlices(indices, embeddings, thumbnails))
        self.intake.searched(time.perf_counter() - started)
        return IngestResult(record, replaced, self.intake.finish())

    def cancel(self) -> None:
        """Drops what has been asked of the backbones and is not computed yet."""
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()
