"""Answers of a server as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from slicevote.v1 import archive_pb2, retrieval_pb2, volume_pb2


@dataclass(frozen=True)
class VolumeRecord:
    """A volume in the archive; fields as in the message of the same name.

    Attributes:
        pixel_spacing_mm: Distance between rows and between columns; None if unknown.
    """

    volume_id: str
    modality: str
    labels: Mapping[str, str]
    patient_key: str
    source: str
    study_instance_uid: str
    series_instance_uid: str
    slice_count: int
    indexed_slice_count: int
    blank_slice_count: int
    slice_positions_mm: tuple[float, ...]
    ingested_at: datetime
    revision: str
    pixel_spacing_mm: tuple[float, float] | None

    @classmethod
    def of(cls, message: volume_pb2.VolumeRecord) -> VolumeRecord:
        """Return the message as an object of this class."""
        spacing = message.pixel_spacing
        return cls(
            volume_id=message.volume_id,
            modality=message.modality,
            labels=dict(sorted(message.labels.items())),
            patient_key=message.patient_key,
            source=message.source,
            study_instance_uid=message.study_instance_uid,
            series_instance_uid=message.series_instance_uid,
            slice_count=message.slice_count,
            indexed_slice_count=message.indexed_slice_count,
            blank_slice_count=message.blank_slice_count,
            slice_positions_mm=tuple(message.slice_positions_mm),
            ingested_at=message.ingested_at.ToDatetime(tzinfo=UTC),
            revision=message.revision,
            pixel_spacing_mm=(spacing.row_mm, spacing.column_mm) if message.HasField("pixel_spacing") else None,
        )


@dataclass(frozen=True)
class Hit:
    """A slice of the query, the slice that it found, and the vote of that hit."""

    query_slice: int
    volume_id: str
    match_slice: int
    match_position_mm: float
    match_sop_instance_uid: str
    similarity: float
    vote: float

    @classmethod
    def of(cls, message: retrieval_pb2.SliceHit) -> Hit:
        """Return the message as an object of this class."""
        return cls(
            message.query_slice,
            message.volume_id,
            message.match_slice,
            message.match_position_mm,
            message.match_sop_instance_uid,
            message.similarity,
            message.vote,
        )


@dataclass(frozen=True)
class Match:
    """A volume of a ranking, with its votes and the hits that they come from."""

    volume: VolumeRecord
    votes: float
    share: float
    similarity_sum: float
    similarity_mean: float
    hits: tuple[Hit, ...]
    late_interaction_score: float | None
    matched_slab: tuple[int, int] | None

    @classmethod
    def of(cls, message: retrieval_pb2.Match) -> Match:
        """Return the message as an object of this class."""
        slab = message.matched_slab
        return cls(
            volume=VolumeRecord.of(message.volume),
            votes=message.votes,
            share=message.share,
            similarity_sum=message.similarity_sum,
            similarity_mean=message.similarity_mean,
            hits=tuple(map(Hit.of, message.hits)),
            late_interaction_score=(
                message.late_interaction_score if message.HasField("late_interaction_score") else None
            ),
            matched_slab=(slab.first, slab.last) if message.HasField("matched_slab") else None,
        )


@dataclass(frozen=True)
class LabelShare:
    """A value of a label and the votes for the volumes that have it."""

    value: str
    votes: float
    share: float


@dataclass(frozen=True)
class StageTimes:
    """Where the server's time went, in seconds. Stages do not overlap; together they take at most the total."""

    decoding_s: float
    embedding_s: float
    searching_s: float
    waiting_s: float
    total_s: float

    @property
    def other_s(self) -> float:
        """What no stage took: messages, ranking."""
        return max(0.0, self.total_s - self.decoding_s - self.embedding_s - self.searching_s - self.waiting_s)

    @classmethod
    def of(cls, message: retrieval_pb2.StageTimes) -> StageTimes:
        """Return the message as an object of this class."""
        stages = (message.decoding, message.embedding, message.searching, message.waiting, message.total)
        return cls(*(stage.ToTimedelta().total_seconds() for stage in stages))


@dataclass(frozen=True)
class Tally:
    """The state of the vote in the middle of a search."""

    planned_slice_count: int
    received_slice_count: int
    voting_slice_count: int
    blank_slice_count: int
    leaders: tuple[tuple[str, float], ...]
    decided: bool

    @classmethod
    def of(cls, message: retrieval_pb2.Tally) -> Tally:
        """Return the message as an object of this class."""
        return cls(
            message.planned_slice_count,
            message.received_slice_count,
            message.voting_slice_count,
            message.blank_slice_count,
            tuple((standing.volume_id, standing.votes) for standing in message.leaders),
            message.decided,
        )


@dataclass(frozen=True)
class Ranking:
    """The result of a search; fields as in the message of the same name.

    Attributes:
        own_excluded: What the query shares with the volumes that were left out because of it: "volume", "series",
            "study", "patient". An entry is missing if the query does not state it, and "patient" also if the archive's
            keys were made with another secret.
    """

    matches: tuple[Match, ...]
    label_votes: Mapping[str, tuple[LabelShare, ...]]
    slice_hits: tuple[Hit, ...]
    planned_slice_count: int
    received_slice_count: int
    voting_slice_count: int
    blank_slice_count: int
    decided_early: bool
    voted_volume_count: int
    times: StageTimes
    backbone: str
    index: str
    exact_because_filtered: bool
    patient_secret_differs: bool
    own_excluded: tuple[str, ...]

    @classmethod
    def of(cls, message: retrieval_pb2.Ranking, *, own_excluded: tuple[str, ...]) -> Ranking:
        """Return the message as an object of this class.

        Args:
            message: The message.
            own_excluded: What the search excluded the query's own volumes by.
        """
        return cls(
            matches=tuple(map(Match.of, message.matches)),
            label_votes={
                votes.key: tuple(LabelShare(value.value, value.votes, value.share) for value in votes.values)
                for votes in message.label_votes
            },
            slice_hits=tuple(map(Hit.of, message.slice_hits)),
            planned_slice_count=message.planned_slice_count,
            received_slice_count=message.received_slice_count,
            voting_slice_count=message.voting_slice_count,
            blank_slice_count=message.blank_slice_count,
            decided_early=message.decided_early,
            voted_volume_count=message.voted_volume_count,
            times=StageTimes.of(message.times),
            backbone=message.backbone,
            index=retrieval_pb2.VectorIndex.Name(message.index).removeprefix("VECTOR_INDEX_").lower(),
            exact_because_filtered=message.exact_because_filtered,
            patient_secret_differs=message.patient_secret_differs,
            own_excluded=tuple(by for by in own_excluded if by != "patient" or not message.patient_secret_differs),
        )


@dataclass(frozen=True)
class IngestResult:
    """The acknowledgement that a volume is in the archive."""

    volume: VolumeRecord
    replaced: bool
    times: StageTimes

    @classmethod
    def of(cls, message: archive_pb2.IngestResult) -> IngestResult:
        """Return the message as an object of this class."""
        return cls(VolumeRecord.of(message.volume), message.replaced, StageTimes.of(message.times))


@dataclass(frozen=True)
class IndexedSlice:
    """A slice in the archive; `thumbnail_webp` is empty where none was asked for or none is kept."""

    index: int
    position_mm: float
    sop_instance_uid: str
    thumbnail_webp: bytes

    @classmethod
    def of(cls, message: archive_pb2.IndexedSlice) -> IndexedSlice:
        """Return the message as an object of this class."""
        return cls(message.index, message.position_mm, message.sop_instance_uid, message.thumbnail_webp)


def status_document(message: archive_pb2.GetArchiveResponse) -> dict[str, Any]:
    """Return a server's status as plain data, without golden embeddings, which are long."""
    document: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for archive in document.get("archives", []):
        archive.get("backbone", {}).pop("golden", None)
        # Absent as long as the archive has no volume.
        archive.setdefault("archive_numerics", None)
        for key in ("volume_count", "slice_count", "unindexed_slice_count", "disk_bytes"):
            archive[key] = int(archive[key])
        if "lsh" in archive:
            archive["lsh"]["slice_count"] = int(archive["lsh"]["slice_count"])
    return document
