"""An ingest, from header to record.

Nothing is written before the whole volume has arrived, so an ingest that breaks off leaves nothing behind.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Slice

from slicevote_server.archive.interface import IndexedSlices, VolumeRecord
from slicevote_server.archive.points import REVISION_LIMIT
from slicevote_server.intake import Intake, VolumeHeader
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.sampling import AllSlices, SamplingScheme, plan
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.session import Session
from slicevote_server.stage_clock import Stage, StageTimes


@dataclass(frozen=True)
class IngestRequest:
    """What is ingested; fields as in the message IngestHeader."""

    volume: VolumeHeader
    labels: Mapping[str, str] = field(default_factory=dict)
    patient_key: str = ""
    patient_secret_fingerprint: str = ""
    source: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sampling: SamplingScheme = field(default_factory=AllSlices)


@dataclass(frozen=True)
class IngestResult:
    """The volume is in every archive."""

    record: VolumeRecord
    replaced: bool
    times: StageTimes


@dataclass(frozen=True)
class _StagedSlice:
    """What is kept of a slice until the whole volume has arrived."""

    thumbnail: bytes
    sop_instance_uid: str
    embeddings: tuple[NDArray[np.float32], ...]


class Ingest:
    """One ingest, into the archives of all backbones from one decode.

    Args:
        request: What is ingested.
        backbones: Where it goes.
        policy: How pixels become grey values.
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
        planned = plan(request.sampling, request.volume.positions_mm)
        self._intake = Intake(request.volume, planned, policy, thumbnails=thumbnails)
        self.session = Session(self._intake, [served.embedder for served in self._backbones])
        self._writing = writing
        self._staged: dict[int, _StagedSlice] = {}

    @property
    def embedded_count(self) -> int:
        """Number of slices that have arrived and been embedded, including blank ones."""
        return len(self._staged) + self._intake.blank_count

    def add(self, slices: Iterable[Slice]) -> None:
        """Prepare and embed planned slices.

        Raises:
            InvalidInput: A slice cannot be used.
            Cancelled: The session was cancelled.
        """
        embedded = self.session.take(slices)
        with self.session.open():
            for row, entry in enumerate(embedded.visible):
                embeddings = tuple(matrix[row] for matrix in embedded.embeddings)
                self._staged[entry.index] = _StagedSlice(entry.thumbnail, entry.sop_instance_uid, embeddings)

    def commit(self) -> IngestResult:
        """Write the volume; when this returns it is on disk.

        Raises:
            InvalidInput: Planned slices are missing.
            NotReady: An archive's patient keys were made with another secret.
            ArchiveUnavailable: The archive's engine stopped; the volume may or may not be there, so send it again.
            Overloaded: The disk is full.
        """
        self._intake.require_complete()
        request = self._request
        indices = tuple(sorted(self._staged))
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
            sop_instance_uids=tuple(self._staged[index].sop_instance_uid for index in indices),
            blank_slice_count=self._intake.blank_count,
            ingested_at=datetime.now(UTC),
            pixel_spacing_mm=request.volume.pixel_spacing_mm,
            revision=1 + secrets.randbelow(REVISION_LIMIT - 1),
        )
        thumbnails = tuple(self._staged[index].thumbnail for index in indices)
        replaced = False
        with self.session.clock.running(Stage.SEARCHING), self._writing:
            # All archives before any: a refusal by the second would leave the volume in the first alone.
            for served in self._backbones:
                served.require_patient_secret(request.patient_secret_fingerprint if record.patient_key else "")
            for place, served in enumerate(self._backbones):
                rows = [self._staged[index].embeddings[place] for index in indices]
                embeddings = np.stack(rows) if rows else np.empty((0, served.backbone.dimension), np.float32)
                replaced |= served.put(
                    record,
                    IndexedSlices(indices, embeddings, thumbnails),
                    patient_secret_fingerprint=request.patient_secret_fingerprint,
                )
        return IngestResult(record, replaced, self.session.clock.times())
