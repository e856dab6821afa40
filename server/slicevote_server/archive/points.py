"""How volumes and slices become Qdrant points.

A slice's point id holds its volume's revision and its index, so that a search needs ids and scores and reads no
payload. A volume's record is a point without a vector, of the same collection, under an id made of its name: writing
it replaces the volume's state in one step.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from slicevote_server.archive.interface import ArchiveIdentity, VolumeRecord
from slicevote_server.runtime.interface import Numerics

VECTOR = "embedding"
"""Name of the vector of a slice."""

KIND = "kind"
VOLUME = "volume"
REVISION = "revision"
PATIENT = "patient"
TAGS = "tags"
RECORD = "record"
THUMBNAIL = "thumbnail"
NUMERICS = "numerics"

KIND_SLICE = "slice"
KIND_VOLUME = "volume"
KIND_ARCHIVE = "archive"

KEYWORD_FIELDS = (KIND, VOLUME, PATIENT, TAGS)
INTEGER_FIELDS = (REVISION,)

SLICE_BITS = 16
"""Bits of a point id that hold the slice's index; the revision has the others."""

REVISION_LIMIT = 1 << 47
"""Revisions are below this, so that ids fit into 63 bits."""

LAYOUT_VERSION = 1
"""Counts up whenever points are laid out differently."""

ARCHIVE_POINT_ID = str(uuid.UUID("5d5ab2a4-8f0f-5f0e-9a4b-0b6f1f6f2d10"))
"""Id of the point that says what the archive was made with."""

_NAMESPACE = uuid.UUID("c3ad8c0e-6f19-5f6c-8d0a-2f4e9a1b7c55")


def slice_point_id(revision: int, index: int) -> int:
    """Gives the id of a slice's point."""
    return revision << SLICE_BITS | index


def split_slice_point_id(point_id: int) -> tuple[int, int]:
    """Gives revision and index of a slice's point."""
    return point_id >> SLICE_BITS, point_id & ((1 << SLICE_BITS) - 1)


def record_point_id(volume_id: str) -> str:
    """Gives the id of a volume's record."""
    return str(uuid.uuid5(_NAMESPACE, volume_id))


def tags(labels: Mapping[str, str]) -> list[str]:
    """Gives labels in the form that one keyword index covers, whatever their keys."""
    return [tag(key, value) for key, value in sorted(labels.items())]


def tag(key: str, value: str) -> str:
    """Gives one label in that form."""
    return f"{key}={value}"


def slice_payload(record: VolumeRecord, thumbnail: bytes) -> dict[str, Any]:
    """Gives what is kept beside a slice's vector."""
    payload: dict[str, Any] = {
        KIND: KIND_SLICE,
        VOLUME: record.volume_id,
        REVISION: record.revision,
        PATIENT: record.patient_key,
        TAGS: tags(record.labels),
    }
    if thumbnail:
        payload[THUMBNAIL] = base64.b64encode(thumbnail).decode("ascii")
    return payload


def thumbnail_of(payload: Mapping[str, Any]) -> bytes:
    """Gives a slice's thumbnail, or nothing."""
    return base64.b64decode(payload.get(THUMBNAIL, ""))


def record_payload(record: VolumeRecord) -> dict[str, Any]:
    """Gives a volume's record as a payload."""
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
        },
    }


def record_of(payload: Mapping[str, Any]) -> VolumeRecord:
    """Gives the record that a payload holds."""
    fields = payload[RECORD]
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
    )


def identity_payload(identity: ArchiveIdentity, numerics: Numerics | None) -> dict[str, Any]:
    """Gives the payload of the point that says what the archive was made with."""
    return {
        KIND: KIND_ARCHIVE,
        "layout_version": LAYOUT_VERSION,
        "backbone": identity.backbone,
        "weights_sha256": identity.weights_sha256,
        "dimension": identity.dimension,
        "precision": identity.precision,
        "intensity_policy": dict(identity.intensity_policy),
        NUMERICS: None if numerics is None else numerics.as_mapping(),
    }


def numerics_of(payload: Mapping[str, Any]) -> Numerics | None:
    """Gives what the archive's vectors are computed with, if that is known."""
    recorded = payload.get(NUMERICS)
    return None if recorded is None else Numerics.of(recorded)


def differences(payload: Mapping[str, Any], identity: ArchiveIdentity) -> list[str]:
    """Says in what an archive differs from what is asked for; empty where it does not."""
    wanted = identity_payload(identity, None)
    return [
        f"{key.replace('_', ' ')}: the archive has {payload.get(key)!r}, this server {wanted[key]!r}"
        for key in ("layout_version", "backbone", "weights_sha256", "dimension", "precision", "intensity_policy")
        if payload.get(key) != wanted[key]
    ]
