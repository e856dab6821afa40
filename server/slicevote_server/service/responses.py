"""Translation of the engine's objects into messages."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from slicevote.v1 import archive_pb2, backbone_pb2, retrieval_pb2, volume_pb2

from slicevote_server.archive.interface import Index, VolumeRecord
from slicevote_server.archive.lsh import LshIndex
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.search import Match, Ranking, Tally
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.stage_clock import StageTimes
from slicevote_server.voting import SliceHit

_INDEXES: Mapping[Index, retrieval_pb2.VectorIndex.ValueType] = {
    Index.HNSW: retrieval_pb2.VECTOR_INDEX_HNSW,
    Index.LSH: retrieval_pb2.VECTOR_INDEX_LSH,
    Index.EXACT: retrieval_pb2.VECTOR_INDEX_EXACT,
}


def record_message(record: VolumeRecord, *, positions: bool = True) -> volume_pb2.VolumeRecord:
    """Translate a volume's record; without positions for lists."""
    ingested_at = Timestamp()
    ingested_at.FromDatetime(record.ingested_at)
    return volume_pb2.VolumeRecord(
        volume_id=record.volume_id,
        modality=record.modality,
        labels=record.labels,
        patient_key=record.patient_key,
        source=record.source,
        study_instance_uid=record.study_instance_uid,
        series_instance_uid=record.series_instance_uid,
        slice_count=record.slice_count,
        indexed_slice_count=len(record.indexed_slices),
        blank_slice_count=record.blank_slice_count,
        slice_positions_mm=record.positions_mm if positions else (),
        ingested_at=ingested_at,
        revision=f"{record.revision:012x}",
        pixel_spacing=None
        if record.pixel_spacing_mm is None
        else volume_pb2.PixelSpacing(row_mm=record.pixel_spacing_mm[0], column_mm=record.pixel_spacing_mm[1]),
    )


def labels_message(counts: Mapping[str, Mapping[str, int]]) -> archive_pb2.ListLabelsResponse:
    """Translate the labels of an archive: keys in order, values by the number of volumes that have them."""
    return archive_pb2.ListLabelsResponse(
        labels=[
            archive_pb2.LabelValues(
                key=key,
                values=[
                    archive_pb2.ValueCount(value=value, volume_count=count)
                    for value, count in sorted(values.items(), key=lambda entry: (-entry[1], entry[0]))
                ],
            )
            for key, values in sorted(counts.items())
        ]
    )


def tally_message(tally: Tally) -> retrieval_pb2.Tally:
    """Translate a tally."""
    return retrieval_pb2.Tally(
        planned_slice_count=tally.planned_count,
        received_slice_count=tally.received_count,
        voting_slice_count=tally.voting_count,
        blank_slice_count=tally.blank_count,
        leaders=[retrieval_pb2.Standing(volume_id=volume, votes=votes) for volume, votes in tally.leaders],
        decided=tally.decided,
    )


def ranking_message(ranking: Ranking, *, backbone: str, index: Index) -> retrieval_pb2.Ranking:
    """Translate a ranking."""
    return retrieval_pb2.Ranking(
        matches=[_match_message(match, ranking) for match in ranking.matches],
        label_votes=[
            retrieval_pb2.LabelVotes(
                key=key,
                values=[
                    retrieval_pb2.ValueVotes(value=value, votes=votes, share=_share(votes, ranking.total_votes))
                    for value, votes in values
                ],
            )
            for key, values in ranking.label_votes.items()
        ],
        slice_hits=[_hit_message(entry, ranking.records) for entry in ranking.slice_hits],
        planned_slice_count=ranking.tally.planned_count,
        received_slice_count=ranking.tally.received_count,
        voting_slice_count=ranking.tally.voting_count,
        blank_slice_count=ranking.tally.blank_count,
        decided_early=ranking.decided_early,
        voted_volume_count=ranking.voted_volume_count,
        times=times_message(ranking.times),
        backbone=backbone,
        index=_INDEXES[index],
        exact_because_filtered=ranking.exact_because_filtered,
        patient_secret_differs=ranking.patient_secret_differs,
    )


def times_message(times: StageTimes) -> retrieval_pb2.StageTimes:
    """Translate stage times."""
    return retrieval_pb2.StageTimes(
        decoding=duration(times.decoding_s),
        embedding=duration(times.embedding_s),
        searching=duration(times.searching_s),
        waiting=duration(times.waiting_s),
        total=duration(times.total_s),
    )


def archive_message(served: ServedBackbone, policy: IntensityPolicy) -> archive_pb2.ArchiveStatus:
    """Describe one backbone and its archive."""
    occupancy, provenance = served.archive.occupancy(), served.archive.provenance()
    recorded = provenance.numerics
    manifest = json_format.Parse(
        served.backbone.manifest_json, backbone_pb2.BackboneManifest(), ignore_unknown_fields=True
    )
    return archive_pb2.ArchiveStatus(
        backbone=manifest,
        intensity_policy=archive_pb2.IntensityPolicy(
            version=policy.version,
            ct_window_hu=volume_pb2.IntensityRange(low=policy.ct_window_hu[0], high=policy.ct_window_hu[1]),
            low_percentile=policy.low_percentile,
            high_percentile=policy.high_percentile,
            smoothing_px=policy.smoothing_px,
        ),
        volume_count=occupancy.volume_count,
        slice_count=occupancy.slice_count,
        unindexed_slice_count=occupancy.unindexed_slice_count,
        engine=served.archive.engine,
        disk_bytes=occupancy.disk_bytes,
        numerics=archive_pb2.Numerics(**served.embedder.numerics.as_mapping()),
        archive_numerics=None if recorded is None else archive_pb2.Numerics(**recorded.as_mapping()),
        lsh=None if served.lsh is None else _lsh_message(served.lsh),
        engine_restart_count=served.archive.restart_count,
        patient_secret_fingerprint=provenance.patient_secret_fingerprint,
    )


def _lsh_message(index: LshIndex) -> archive_pb2.LshStatus:
    return archive_pb2.LshStatus(
        ready=index.is_in_step(),
        bits=index.bits,
        rescored_candidates=index.settings.rescored_candidates,
        slice_count=index.slice_count,
    )


def duration(seconds: float) -> Duration:
    """Translate a duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _match_message(match: Match, ranking: Ranking) -> retrieval_pb2.Match:
    candidate = match.candidate
    return retrieval_pb2.Match(
        volume=record_message(match.record),
        votes=candidate.votes,
        share=_share(candidate.votes, ranking.total_votes),
        similarity_sum=candidate.similarity_sum,
        similarity_mean=candidate.similarity_sum / len(candidate.hits),
        hits=[_hit_message(entry, ranking.records) for entry in candidate.hits],
        late_interaction_score=candidate.score,
        matched_slab=None
        if candidate.slab is None
        else volume_pb2.SliceRange(first=candidate.slab[0], last=candidate.slab[1]),
    )


def _hit_message(entry: SliceHit, records: Mapping[str, VolumeRecord]) -> retrieval_pb2.SliceHit:
    record = records[entry.hit.volume_id]
    return retrieval_pb2.SliceHit(
        query_slice=entry.query_slice,
        volume_id=entry.hit.volume_id,
        match_slice=entry.hit.slice_index,
        match_position_mm=record.positions_mm[entry.hit.slice_index],
        match_sop_instance_uid=record.sop_instance_uid(entry.hit.slice_index),
        similarity=entry.hit.similarity,
        vote=entry.vote,
    )


def _share(votes: float, total: float) -> float:
    return votes / total if total > 0 else 0.0
