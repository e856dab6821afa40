"""How volumes and slices are laid out as Qdrant points.

The id of a slice's point holds the revision of its volume and the index of the slice, so that a search needs ids and
scores and reads no payload. The record of a volume is a point without a vector in the same collection, under an id
derived from the volume's name: writing it replaces the state of the volume in one step.
"""

from __future__ import annotations

import base64
import dataclasses
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from slicevote_server.archive.interface import ArchiveIdentity, Provenance, VolumeRecord
from slicevote_server.runtime.interface import Numerics

VECTOR = "embedding"
"""Name of the vector of a slice."""

KIND = "kind"
VOLUME = "volume"
REVISION = "revision"
PATIENT = "patient"
STUDY = "study"
SERIES = "series"
TAGS = "tags"
RECORD = "record"
THUMBNAIL = "thumbnail"

KIND_SLICE = "slice"
KIND_VOLUME = "volume"
KIND_ARCHIVE = "archive"

KEYWORD_FIELDS = (KIND, VOLUME, PATIENT, STUDY, SERIES, TAGS)
INTEGER_FIELDS = (REVISION,)

SLICE_BITS = 16
"""Bits of a point id that hold the index of the slice; the others hold the revision."""

REVISION_LIMIT = 1 << 47
"""Revisions are below this, so that ids fit into 63 bits."""

LAYOUT_VERSION = 2
"""Incremented whenever points are laid out differently."""

ARCHIVE_POINT_ID = str(uuid.UUID("5d5ab2a4-8f0f-5f0e-9a4b-0b6f1f6f2d10"))
"""Id of the point that records what the archive was made for and with."""

_NAMESPACE = uuid.UUID("c3ad8c0e-6f19-5f6c-8d0a-2f4e9a1b7c55")


def slice_point_id(revision: int, index: int) -> int:
    """Return the id of the point of a slice."""
    return revision << SLICE_BITS | index


def split_slice_point_id(point_id: int) -> tuple[int, int]:
    """Return the revision and the index that the id of a slice's point holds."""
    return point_id >> SLICE_BITS, point_id & ((1 << SLICE_BITS) - 1)


def record_point_id(volume_id: str) -> str:
    """Return the id of the point of a volume's record."""
    return str(uuid.uuid5(_NAMESPACE, volume_id))


def tags(labels: Mapping[str, str]) -> list[str]:
    """Return labels in the form that a single keyword index covers, whatever their keys."""
    return [tag(key, value) for key, value in sorted(labels.items())]


def tag(key: str, value: str) -> str:
    """Return one label in that form."""
    return f"{key}={value}"


def split_tag(tag: str) -> tuple[str, str]:
    """Return the key and the value of a label in that form; a key has no "=", a value may."""
    key, _, value = tag.partition("=")
    return key, value


def slice_payload(record: VolumeRecord, thumbnail: bytes) -> dict[str, Any]:
    """Return what is stored beside the vector of a slice."""
    payload: dict[str, Any] = {
        KIND: KIND_SLICE,
        VOLUME: record.volume_id,
        REVISION: record.revision,
        PATIENT: record.patient_key,
        STUDY: record.study_instance_uid,
        SERIES: record.series_instance_uid,
        TAGS: tags(record.labels),
    }
    if thumbnail:
        payload[THUMBNAIL] = base64.b64encode(thumbnail).decode("ascii")
    return payload


def thumbnail_of(payload: Mapping[str, Any]) -> bytes:
    """Return the thumbnail of a slice; empty if it has none."""
    return base64.b64decode(payload.get(THUMBNAIL, ""))


def record_payload(record: VolumeRecord) -> dict[str, Any]:
    """Return the record of a volume as a payload."""
    return {
        KIND: KIND_VOLUME,
        VOLUME: record.volume_id,
        PATIENT: record.patient_key,
        TAGS: tags(record.labels),
        RECORD: {
            "modality": record.modality,
            "labels": dict(record.labels),
            "source": record.source,
            "study_instance_uid": record.study_instance_uid,
            "series_instance_uid": record.series_instance_uid,
            "positions_mm": list(record.positions_mm),
            "indexed_slices": list(record.indexed_slices),
            "sop_instance_uids": list(record.sop_instance_uids),
            "blank_slice_count": record.blank_slice_count,
            "ingested_at": record.ingested_at.isoformat(),
            "revision": record.revision,
            "pixel_spacing_mm": record.pixel_spacing_mm and list(record.pixel_spacing_mm),
        },
    }


def record_of(payload: Mapping[str, Any]) -> VolumeRecord:
    """Return the record that a payload holds."""
    fields = payload[RECORD]
    spacing = fields["pixel_spacing_mm"]
    return VolumeRecord(
        volume_id=payload[VOLUME],
        modality=fields["modality"],
        labels=fields["labels"],
        patient_key=payload[PATIENT],
        source=fields["source"],
        study_instance_uid=fields["study_instance_uid"],
        series_instance_uid=fields["series_instance_uid"],
        positions_mm=tuple(fields["positions_mm"]),
        indexed_slices=tuple(fields["indexed_slices"]),
        sop_instance_uids=tuple(fields["sop_instance_uids"]),
        blank_slice_count=fields["blank_slice_count"],
        ingested_at=datetime.fromisoformat(fields["ingested_at"]),
        revision=fields["revision"],
        pixel_spacing_mm=spacing and (spacing[0], spacing[1]),
    )


def archive_payload(identity: ArchiveIdentity, provenance: Provenance) -> dict[str, Any]:
    """Return the payload of the point that records what the archive was made for and with."""
    numerics = provenance.numerics
    return {
        KIND: KIND_ARCHIVE,
        "layout_version": LAYOUT_VERSION,
        **_identity_fields(identity),
        "numerics": numerics and numerics.as_mapping(),
        "patient_secret_fingerprint": provenance.patient_secret_fingerprint,
    }


def layout_version_of(payload: Mapping[str, Any]) -> int:
    """Return how the points of an archive are laid out."""
    return int(payload["layout_version"])


def identity_of(payload: Mapping[str, Any]) -> ArchiveIdentity:
    """Return what an archive was made for."""
    return ArchiveIdentity(**{field.name: payload[field.name] for field in dataclasses.fields(ArchiveIdentity)})


def provenance_of(payload: Mapping[str, Any]) -> Provenance:
    """Return what the volumes of an archive were made with."""
    numerics = payload["numerics"]
    return Provenance(numerics and Numerics.of(numerics), payload["patient_secret_fingerprint"])


def differences(recorded: ArchiveIdentity, wanted: ArchiveIdentity) -> list[str]:
    """Return sentences that say in what an archive differs from what is wanted."""
    there = _identity_fields(recorded)
    return [
        f"{key.replace('_', ' ')}: the archive has {there[key]!r}, this server {value!r}"
        for key, value in _identity_fields(wanted).items()
        if there[key] != value
    ]


def _identity_fields(identity: ArchiveIdentity) -> dict[str, Any]:
    return {**dataclasses.asdict(identity), "intensity_policy": dict(identity.intensity_policy)}
