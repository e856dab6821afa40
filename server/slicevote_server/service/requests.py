"""Translation of messages into the engine's objects; every message is checked here, once."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
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
    SECRET_FINGERPRINT,
    VOLUME_ID,
)
from slicevote.v1 import archive_pb2, retrieval_pb2, sampling_pb2, volume_pb2
from slicevote_volumes import IntensityRange, Slice, VolumeError, decode_instance
from slicevote_volumes.modality import normalise_modality

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

ResultT = TypeVar("ResultT")

_MODALITY = "modality"
"""The label that repeats a volume's modality."""

_INDEXES: Mapping[int, Index] = {
    retrieval_pb2.VECTOR_INDEX_UNSPECIFIED: Index.HNSW,
    retrieval_pb2.VECTOR_INDEX_HNSW: Index.HNSW,
    retrieval_pb2.VECTOR_INDEX_LSH: Index.LSH,
    retrieval_pb2.VECTOR_INDEX_EXACT: Index.EXACT,
}


def search_request(header: retrieval_pb2.SearchHeader) -> SearchRequest:
    """Check and translate the header of a search.

    Raises:
        InvalidInput: A field is not as the contract says.
    """
    volume = volume_header(header.volume)
    aggregation, slice_wise = _read_oneof(
        header.aggregation, "method", _AGGREGATIONS, "header.aggregation", otherwise=lambda: (CountVotes(), False)
    )
    return SearchRequest(
        volume=volume,
        index=_read_enum("header.index", header.index, _INDEXES, retrieval_pb2.VectorIndex),
        sampling=sampling(header.sampling),
        aggregation=aggregation,
        slice_wise=slice_wise,
        neighbours=_between("header.neighbours", header.neighbours or 1, 1, MAX_NEIGHBOURS),
        top_k=_between("header.top_k", header.top_k or 10, 1, MAX_TOP_K),
        scope=_scope(header.filter),
        late_interaction=_late_interaction(header, volume.slice_count),
        stop_when_decided=header.stop_when_decided,
        slab=_slab("header.slab", header.slab, volume.slice_count) if header.HasField("slab") else None,
        patient_secret_fingerprint=_fingerprint(
            "header.filter.patient_secret_fingerprint", header.filter.patient_secret_fingerprint
        ),
    )


def ingest_request(header: archive_pb2.IngestHeader) -> IngestRequest:
    """Check and translate the header of an ingest.

    Raises:
        InvalidInput: A field is not as the contract says.
    """
    volume = volume_header(header.volume)
    labels = dict(header.labels)
    if len(labels) > MAX_LABELS:
        raise _invalid("header.labels", f"{len(labels)} labels are too many; at most {MAX_LABELS} are possible")
    for key, value in labels.items():
        _label_key("header.labels", key)
        _text("header.labels", value, MAX_LABEL_VALUE_LENGTH, what=f"the value of label {key}", minimum=1)
    if _MODALITY in labels:
        labels[_MODALITY] = _modality("header.labels", labels[_MODALITY])
    if labels.setdefault(_MODALITY, volume.modality) != volume.modality:
        raise _invalid(
            "header.labels",
            "the label modality differs from header.volume.modality, which decides on the intensity window; set the "
            "latter, and the label follows",
        )
    if not volume.modality:
        del labels[_MODALITY]
    return IngestRequest(
        volume=volume,
        labels=labels,
        patient_key=_text("header.patient_key", header.patient_key, MAX_PATIENT_KEY_LENGTH),
        patient_secret_fingerprint=_fingerprint("header.patient_secret_fingerprint", header.patient_secret_fingerprint),
        source=_text("header.source", header.source, MAX_SOURCE_LENGTH),
        study_instance_uid=_text("header.study_instance_uid", header.study_instance_uid, MAX_UID_LENGTH),
        series_instance_uid=_text("header.series_instance_uid", header.series_instance_uid, MAX_UID_LENGTH),
        sampling=sampling(header.sampling),
    )


def volume_header(header: volume_pb2.VolumeHeader) -> VolumeHeader:
    """Check and translate what a stream says of its volume.

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
    spacing_mm = None
    if header.HasField("pixel_spacing"):
        spacing_mm = (header.pixel_spacing.row_mm, header.pixel_spacing.column_mm)
        if not all(math.isfinite(distance) and distance > 0 for distance in spacing_mm):
            raise _invalid("header.volume.pixel_spacing", "row_mm and column_mm must be finite and greater than 0")
    return VolumeHeader(
        volume_id=volume_id(header.volume_id, "header.volume.volume_id"),
        modality=_modality("header.volume.modality", header.modality),
        positions_mm=positions,
        intensity_range=intensity_range,
        pixel_spacing_mm=spacing_mm,
    )


def volume_id(value: str, field: str = "volume_id") -> str:
    """Check the name of a volume.

    Raises:
        InvalidInput: It is not one.
    """
    if not VOLUME_ID.fullmatch(value):
        raise _invalid(field, "a volume's name is 1 to 128 characters of [A-Za-z0-9._:-]")
    return value


def sampling(message: sampling_pb2.Sampling, field: str = "header.sampling") -> SamplingScheme:
    """Check and translate a sampling scheme; none means all slices.

    Raises:
        InvalidInput: The scheme is unknown or its number out of range.
    """
    return _read_oneof(message, "scheme", _SAMPLINGS, field, otherwise=AllSlices)


def label_conditions(
    conditions: Sequence[retrieval_pb2.LabelCondition], field: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Check and translate conditions on labels.

    Raises:
        InvalidInput: A key is empty, or a condition has no values or too many.
    """
    if len(conditions) > MAX_LABELS:
        raise _invalid(field, f"{len(conditions)} conditions are too many; at most {MAX_LABELS} are possible")
    return tuple(_label_condition(condition, field) for condition in conditions)


def slice_of(message: volume_pb2.Slice) -> Slice:
    """Check and translate one slice; this decodes DICOM, so keep it off the event loop.

    Raises:
        InvalidInput: It is not an image, or not the one that it claims to be.
    """

    def nothing() -> Slice:
        raise InvalidInput(
            f"slice {message.index} has no picture; set pixels or dicom_instance",
            reason="SLICE_EMPTY",
            field="slice.content",
        )

    return _read_oneof(message, "content", _CONTENTS, "slice", otherwise=nothing, whole=True)


def _read_oneof(
    message: Message,
    oneof: str,
    members: Mapping[str, Callable[[Any, str], ResultT]],
    field: str,
    *,
    otherwise: Callable[[], ResultT],
    whole: bool = False,
) -> ResultT:
    """Read a oneof through a table.

    Args:
        message: The message that holds the oneof.
        oneof: Its name.
        members: For every member a function of its value and the member's full field name.
        field: Full name of the message in the request.
        otherwise: Called where no member is set.
        whole: Call the members' functions with the whole message.

    Raises:
        InvalidInput: The member is unknown to this server.
    """
    name = message.WhichOneof(oneof)
    if name is None:
        unknown = UnknownFieldSet(message)
        numbers = sorted({unknown[place].field_number for place in range(len(unknown))})
        if numbers:
            raise _invalid(
                f"{field}.{oneof}",
                f"this server does not know field {numbers[0]} of {message.DESCRIPTOR.full_name}; it knows "
                f"{', '.join(members)}",
            )
        return otherwise()
    if name not in members:
        raise _invalid(f"{field}.{name}", f"this server does not know {name}; it knows {', '.join(members)}")
    return members[name](message if whole else getattr(message, name), f"{field}.{name}")


def _read_enum(field: str, value: int, members: Mapping[Any, ResultT], names: Any, where: str = "") -> ResultT:
    """Read an enum through a table.

    Raises:
        InvalidInput: The value is unknown to this server.
    """
    if value not in members:
        known = ", ".join(f"{names.Name(member)} ({member})" for member in members)
        raise _invalid(field, f"{where}this server does not know {names.DESCRIPTOR.name} {value}; it knows {known}")
    return members[value]


def _every_millimetres(message: sampling_pb2.EveryMillimetres, field: str) -> SamplingScheme:
    if not (math.isfinite(message.gap_mm) and message.gap_mm > 0):
        raise _invalid(f"{field}.gap_mm", "the gap must be finite and greater than 0 mm")
    return EveryMillimetres(message.gap_mm)


_SAMPLINGS: Mapping[str, Callable[[Any, str], SamplingScheme]] = {
    "all": lambda message, field: AllSlices(),
    "random": lambda message, field: RandomSlices(
        _between(f"{field}.count", message.count, 1, MAX_SLICES), message.seed
    ),
    "every_millimetres": _every_millimetres,
    "every_nth": lambda message, field: EveryNthSlice(_between(f"{field}.step", message.step, 1, MAX_SLICES)),
    "evenly_spaced": lambda message, field: EvenlySpacedSlices(
        _between(f"{field}.count", message.count, 1, MAX_SLICES)
    ),
}


def _gaussian(message: retrieval_pb2.GaussianVotes, field: str) -> tuple[Aggregation, bool]:
    sigma = message.sigma if message.HasField("sigma") else DEFAULT_SIGMA
    if not (math.isfinite(sigma) and sigma > 0):
        raise _invalid(f"{field}.sigma", "sigma must be finite and greater than 0")
    return GaussianVotes(sigma), False


_AGGREGATIONS: Mapping[str, Callable[[Any, str], tuple[Aggregation, bool]]] = {
    "count": lambda message, field: (CountVotes(), False),
    "gaussian": _gaussian,
    "similarity": lambda message, field: (SimilarityVotes(), False),
    "slice_wise": lambda message, field: (CountVotes(), True),
}
"""How hits become votes, and whether every slice is a case of its own."""


def _slice_of_instance(message: volume_pb2.Slice, field: str) -> Slice:
    try:
        decoded = decode_instance(message.dicom_instance, message.index)
    except VolumeError as error:
        raise InvalidInput(
            f"slice {message.index}: the DICOM instance cannot be used: {error.reason}",
            reason="INSTANCE_UNUSABLE",
            field=field,
        ) from error
    uid = _text("slice.sop_instance_uid", message.sop_instance_uid or decoded.sop_instance_uid, MAX_UID_LENGTH)
    return Slice(decoded.index, decoded.pixels, decoded.rescale_slope, decoded.rescale_intercept, uid)


def _slice_of_pixels(message: volume_pb2.Slice, field: str) -> Slice:
    pixels, where = message.pixels, f"slice {message.index}"
    dtype = _read_enum(
        f"{field}.element_type", pixels.element_type, ELEMENT_DTYPES, volume_pb2.ElementType, f"{where}: "
    )
    if not (1 <= pixels.rows <= MAX_SIDE and 1 <= pixels.columns <= MAX_SIDE):
        raise _invalid(field, f"{where} has {pixels.rows} x {pixels.columns} pixels; 1 to {MAX_SIDE} are possible")
    expected = pixels.rows * pixels.columns * dtype.itemsize
    if len(pixels.data) != expected:
        raise InvalidInput(
            f"{where}: {len(pixels.data)} bytes do not make {pixels.rows} x {pixels.columns} pixels of "
            f"{dtype.itemsize} bytes each; {expected} are expected",
            reason="WRONG_LENGTH",
            field=f"{field}.data",
        )
    slope = pixels.rescale_slope if pixels.HasField("rescale_slope") else 1.0
    if not (math.isfinite(slope) and slope != 0 and math.isfinite(pixels.rescale_intercept)):
        raise _invalid(field, f"{where}: the rescale slope must be finite and not 0, the intercept finite")
    image = np.frombuffer(pixels.data, dtype).reshape(pixels.rows, pixels.columns)
    uid = _text("slice.sop_instance_uid", message.sop_instance_uid, MAX_UID_LENGTH)
    return Slice(message.index, image, slope, pixels.rescale_intercept, uid)


_CONTENTS: Mapping[str, Callable[[Any, str], Slice]] = {
    "pixels": _slice_of_pixels,
    "dicom_instance": _slice_of_instance,
}


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
    return Scope(
        labels=label_conditions(message.labels, "header.filter.labels"),
        exclude_volume_ids=_exclusions(message, "exclude_volume_ids", volume_id),
        exclude_patient_keys=_exclusions(message, "exclude_patient_keys", _patient_key),
        exclude_study_instance_uids=_exclusions(message, "exclude_study_instance_uids", _uid),
        exclude_series_instance_uids=_exclusions(message, "exclude_series_instance_uids", _uid),
    )


def _exclusions(message: Message, name: str, check: Callable[[str, str], str]) -> frozenset[str]:
    values: Sequence[str] = getattr(message, name)
    field = f"header.filter.{name}"
    if len(values) > MAX_EXCLUSIONS:
        raise _invalid(field, f"{len(values)} exclusions are too many; at most {MAX_EXCLUSIONS} are possible")
    if "" in values:
        raise _invalid(field, "an exclusion is empty; leave it out")
    return frozenset(check(value, field) for value in values)


def _patient_key(value: str, field: str) -> str:
    return _text(field, value, MAX_PATIENT_KEY_LENGTH, what="a patient key")


def _uid(value: str, field: str) -> str:
    return _text(field, value, MAX_UID_LENGTH, what="a UID")


def _label_condition(condition: retrieval_pb2.LabelCondition, field: str) -> tuple[str, tuple[str, ...]]:
    key = _label_key(field, condition.key)
    _between(f"{field}.any_of", len(condition.any_of), 1, MAX_LABEL_VALUES)
    values = (
        _text(f"{field}.any_of", value, MAX_LABEL_VALUE_LENGTH, what=f"a value of label {key}")
        for value in condition.any_of
    )
    if key == _MODALITY:
        values = (_modality(f"{field}.any_of", value) for value in values)
    return key, tuple(values)


def _label_key(field: str, key: str) -> str:
    if not LABEL_KEY.fullmatch(key):
        raise _invalid(field, "a label's key is not 1 to 64 characters of [A-Za-z0-9_.-]")
    return key


def _modality(field: str, value: str) -> str:
    try:
        return normalise_modality(_text(field, value, MAX_MODALITY_LENGTH))
    except ValueError as error:
        raise _invalid(field, str(error)) from error


def _fingerprint(field: str, value: str) -> str:
    if value and not SECRET_FINGERPRINT.fullmatch(value):
        raise _invalid(field, "a secret's fingerprint is 16 characters of [0-9a-f]")
    return value


def _text(field: str, value: str, maximum: int, *, what: str = "the text", minimum: int = 0) -> str:
    # The text itself is not repeated in the error: it may be a patient's.
    if not minimum <= len(value) <= maximum:
        raise _invalid(field, f"{what} has {len(value)} characters; {minimum} to {maximum} are possible")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise _invalid(field, f"{what} has control characters; leave them out")
    return value


def _between(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise _invalid(field, f"{value} is out of range; {low} to {high} are possible")
    return value


def _invalid(field: str, message: str) -> InvalidInput:
    return InvalidInput(f"{field}: {message}", reason="FIELD_INVALID", field=field)
