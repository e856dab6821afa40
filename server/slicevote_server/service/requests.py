"""Messages to the engine's objects: every message is checked here, once, at the door."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from slicevote.contract import (
    ELEMENT_DTYPES,
    LABEL_KEY,
    MAX_CANDIDATES,
    MAX_EXCLUSIONS,
    MAX_LABEL_VALUE_LENGTH,
    MAX_LABEL_VALUES,
    MAX_LABELS,
    MAX_MODALITY_LENGTH,
    MAX_NEIGHBOURS,
    MAX_PATIENT_KEY_LENGTH,
    MAX_SIDE,
    MAX_SLICES,
    MAX_SOURCE_LENGTH,
    MAX_TOP_K,
    MAX_UID_LENGTH,
    VOLUME_ID,
)
from slicevote.v1 import archive_pb2, retrieval_pb2, sampling_pb2, volume_pb2
from slicevote_volumes import IntensityRange, Slice, VolumeError, decode_instance

from slicevote_server.archive.interface import Index, Scope
from slicevote_server.errors import InvalidInput
from slicevote_server.ingest import IngestRequest
from slicevote_server.intake import VolumeHeader
from slicevote_server.sampling import (
    AllSlices,
    EvenlySpacedSlices,
    EveryMillimetres,
    EveryNthSlice,
    RandomSlices,
    SamplingScheme,
)
from slicevote_server.search import LateInteraction, SearchRequest
from slicevote_server.voting import DEFAULT_SIGMA, Aggregation, CountVotes, GaussianVotes, SimilarityVotes

_INDEXES: Mapping[int, Index] = {
    retrieval_pb2.VECTOR_INDEX_UNSPECIFIED: Index.HNSW,
    retrieval_pb2.VECTOR_INDEX_HNSW: Index.HNSW,
    retrieval_pb2.VECTOR_INDEX_LSH: Index.LSH,
    retrieval_pb2.VECTOR_INDEX_EXACT: Index.EXACT,
}


def search_request(header: retrieval_pb2.SearchHeader) -> SearchRequest:
    """Checks and translates the header of a search.

    Raises:
        InvalidInput: A field is not as the contract says.
    """
    volume = volume_header(header.volume)
    if header.index not in _INDEXES:
        raise _invalid("header.index", f"index {header.index} is unknown; use one of VectorIndex")
    aggregation, slice_wise = _aggregation(header.aggregation)
    return SearchRequest(
        volume=volume,
        index=_INDEXES[header.index],
        sampling=sampling(header.sampling),
        aggregation=aggregation,
        slice_wise=slice_wise,
        neighbours=_between("header.neighbours", header.neighbours or 1, 1, MAX_NEIGHBOURS),
        top_k=_between("header.top_k", header.top_k or 10, 1, MAX_TOP_K),
        scope=_scope(header.filter),
        late_interaction=_late_interaction(header, volume.slice_count),
        stop_when_decided=header.stop_when_decided,
        slab=_slab("header.slab", header.slab, volume.slice_count) if header.HasField("slab") else None,
    )


def ingest_request(header: archive_pb2.IngestHeader) -> IngestRequest:
    """Checks and translates the header of an ingest.

    Raises:
        InvalidInput: A field is not as the contract says.
    """
    volume = volume_header(header.volume)
    labels = dict(header.labels)
    if volume.modality:
        labels.setdefault("modality", volume.modality)
    if len(labels) > MAX_LABELS:
        raise _invalid("header.labels", f"{len(labels)} labels are too many; at most {MAX_LABELS}")
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key):
            raise _invalid("header.labels", "a label's key is not 1 to 64 characters of [A-Za-z0-9_.-]")
        _text("header.labels", value, MAX_LABEL_VALUE_LENGTH, what=f"label {key}", minimum=1)
    return IngestRequest(
        volume=volume,
        labels=labels,
        patient_key=_text("header.patient_key", header.patient_key, MAX_PATIENT_KEY_LENGTH),
        source=_text("header.source", header.source, MAX_SOURCE_LENGTH),
        study_instance_uid=_text("header.study_instance_uid", header.study_instance_uid, MAX_UID_LENGTH),
        series_instance_uid=_text("header.series_instance_uid", header.series_instance_uid, MAX_UID_LENGTH),
        sampling=sampling(header.sampling),
    )


def volume_header(header: volume_pb2.VolumeHeader) -> VolumeHeader:
    """Checks and translates what a stream says of its volume.

    Raises:
        InvalidInput: A field is not as the contract says.
    """
    positions = tuple(header.slice_positions_mm)
    field = "header.volume.slice_positions_mm"
    if not 1 <= len(positions) <= MAX_SLICES:
        raise _invalid(field, f"{len(positions)} slice positions are given; 1 to {MAX_SLICES} are possible")
    if not all(map(math.isfinite, positions)):
        raise _invalid(field, "a slice position is not finite")
    if any(after < before for before, after in itertools.pairwise(positions)):
        raise _invalid(field, "the slice positions do not ascend; slice 0 is the most inferior one")
    intensity_range = None
    if header.HasField("intensity_range"):
        low, high = header.intensity_range.low, header.intensity_range.high
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise _invalid("header.volume.intensity_range", "low and high must be finite, and low less than high")
        intensity_range = IntensityRange(low, high)
    return VolumeHeader(
        volume_id=volume_id(header.volume_id, "header.volume.volume_id"),
        modality=_text("header.volume.modality", header.modality, MAX_MODALITY_LENGTH),
        positions_mm=positions,
        intensity_range=intensity_range,
    )


def volume_id(value: str, field: str = "volume_id") -> str:
    """Checks the name of a volume.

    Raises:
        InvalidInput: It is not one.
    """
    if not VOLUME_ID.fullmatch(value):
        raise _invalid(field, "a volume's name is 1 to 128 characters of [A-Za-z0-9._:-]")
    return value


def sampling(message: sampling_pb2.Sampling) -> SamplingScheme:
    """Checks and translates a sampling scheme; none means all slices.

    Raises:
        InvalidInput: Its number is out of range.
    """
    match message.WhichOneof("scheme"):
        case "random":
            count = _between("sampling.random.count", message.random.count, 1, MAX_SLICES)
            return RandomSlices(count, message.random.seed)
        case "every_millimetres":
            gap_mm = message.every_millimetres.gap_mm
            if not (math.isfinite(gap_mm) and gap_mm > 0):
                raise _invalid("sampling.every_millimetres.gap_mm", "the gap must be more than 0 mm, and finite")
            return EveryMillimetres(gap_mm)
        case "every_nth":
            return EveryNthSlice(_between("sampling.every_nth.step", message.every_nth.step, 1, MAX_SLICES))
        case "evenly_spaced":
            count = _between("sampling.evenly_spaced.count", message.evenly_spaced.count, 1, MAX_SLICES)
            return EvenlySpacedSlices(count)
        case _:
            return AllSlices()


def label_conditions(
    conditions: Sequence[retrieval_pb2.LabelCondition], field: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Checks and translates conditions on labels.

    Raises:
        InvalidInput: A key is empty or a condition has no values, or too many.
    """
    if len(conditions) > MAX_LABELS:
        raise _invalid(field, f"{len(conditions)} conditions are too many; at most {MAX_LABELS}")
    for condition in conditions:
        if not LABEL_KEY.fullmatch(condition.key):
            raise _invalid(field, "a label's key is not 1 to 64 characters of [A-Za-z0-9_.-]")
        _between(f"{field}.any_of", len(condition.any_of), 1, MAX_LABEL_VALUES)
    return tuple((condition.key, tuple(condition.any_of)) for condition in conditions)


def slice_of(message: volume_pb2.Slice) -> Slice:
    """Checks and translates one slice; this decodes DICOM and is not for the event loop.

    Raises:
        InvalidInput: It is not a picture, or not the one that it says.
    """
    match message.WhichOneof("content"):
        case "pixels":
            return _slice_of_pixels(message)
        case "dicom_instance":
            try:
                decoded = decode_instance(message.dicom_instance, message.index)
            except VolumeError as error:
                raise InvalidInput(
                    f"slice {message.index}: the DICOM instance cannot be used: {error.reason}",
                    reason="INSTANCE_UNUSABLE",
                    field="slice.dicom_instance",
                ) from error
            uid = _text("slice.sop_instance_uid", message.sop_instance_uid or decoded.sop_instance_uid, MAX_UID_LENGTH)
            return Slice(decoded.index, decoded.pixels, decoded.rescale_slope, decoded.rescale_intercept, uid)
        case _:
            raise InvalidInput(
                f"slice {message.index} has no picture; set pixels or dicom_instance",
                reason="SLICE_EMPTY",
                field="slice.content",
            )


def _slice_of_pixels(message: volume_pb2.Slice) -> Slice:
    pixels, where = message.pixels, f"slice {message.index}"
    dtype = ELEMENT_DTYPES.get(pixels.element_type)
    if dtype is None:
        raise _invalid("slice.pixels.element_type", f"{where}: the element type is not given or unknown")
    if not (1 <= pixels.rows <= MAX_SIDE and 1 <= pixels.columns <= MAX_SIDE):
        raise _invalid(
            "slice.pixels", f"{where}: {pixels.rows} x {pixels.columns} pixels; 1 to {MAX_SIDE} are possible"
        )
    expected = pixels.rows * pixels.columns * dtype.itemsize
    if len(pixels.data) != expected:
        raise InvalidInput(
            f"{where}: {len(pixels.data)} bytes do not make {pixels.rows} x {pixels.columns} pixels of "
            f"{dtype.itemsize} bytes each; {expected} are expected",
            reason="WRONG_LENGTH",
            field="slice.pixels.data",
        )
    slope = pixels.rescale_slope if pixels.HasField("rescale_slope") else 1.0
    if not (math.isfinite(slope) and slope != 0 and math.isfinite(pixels.rescale_intercept)):
        raise _invalid("slice.pixels", f"{where}: the rescale slope must be finite and not 0, the intercept finite")
    image = np.frombuffer(pixels.data, dtype).reshape(pixels.rows, pixels.columns)
    uid = _text("slice.sop_instance_uid", message.sop_instance_uid, MAX_UID_LENGTH)
    return Slice(message.index, image, slope, pixels.rescale_intercept, uid)


def _aggregation(message: retrieval_pb2.Aggregation) -> tuple[Aggregation, bool]:
    """Gives how hits become votes, and whether every slice is a case of its own."""
    match message.WhichOneof("method"):
        case "gaussian":
            sigma = message.gaussian.sigma if message.gaussian.HasField("sigma") else DEFAULT_SIGMA
            if not (math.isfinite(sigma) and sigma > 0):
                raise _invalid("header.aggregation.gaussian.sigma", "sigma must be more than 0, and finite")
            return GaussianVotes(sigma), False
        case "similarity":
            return SimilarityVotes(), False
        case "slice_wise":
            return CountVotes(), True
        case _:
            return CountVotes(), False


def _late_interaction(header: retrieval_pb2.SearchHeader, slice_count: int) -> LateInteraction | None:
    if not header.HasField("late_interaction"):
        return None
    wanted = header.late_interaction
    field = "header.late_interaction"
    return LateInteraction(
        candidates=_between(f"{field}.candidates", wanted.candidates or 50, 1, MAX_CANDIDATES),
        slab=_slab(f"{field}.slab", wanted.slab, slice_count) if wanted.HasField("slab") else None,
    )


def _slab(field: str, slab: volume_pb2.SliceRange, slice_count: int) -> tuple[int, int]:
    if not slab.first <= slab.last < slice_count:
        raise _invalid(field, f"slices {slab.first} to {slab.last} are not a part of a volume of {slice_count} slices")
    return slab.first, slab.last


def _scope(message: retrieval_pb2.VolumeFilter) -> Scope:
    for name in ("exclude_volume_ids", "exclude_patient_keys"):
        values = getattr(message, name)
        if len(values) > MAX_EXCLUSIONS:
            raise _invalid(f"header.filter.{name}", f"{len(values)} exclusions are too many; at most {MAX_EXCLUSIONS}")
        if "" in values:
            raise _invalid(f"header.filter.{name}", "an exclusion is empty; leave it out")
    return Scope(
        labels=label_conditions(message.labels, "header.filter.labels"),
        exclude_volume_ids=frozenset(message.exclude_volume_ids),
        exclude_patient_keys=frozenset(message.exclude_patient_keys),
    )


def _text(field: str, value: str, maximum: int, *, what: str = "the text", minimum: int = 0) -> str:
    # The text itself is not repeated in the error: it may be a patient's.
    if not minimum <= len(value) <= maximum:
        raise _invalid(field, f"{what} has {len(value)} characters; {minimum} to {maximum} are possible")
    return value


def _between(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise _invalid(field, f"{value} is out of range; {low} to {high} are possible")
    return value


def _invalid(field: str, message: str) -> InvalidInput:
    return InvalidInput(f"{field}: {message}", reason="FIELD_INVALID", field=field)
