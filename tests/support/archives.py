"""Archives for tests, and volumes to put into them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from slicevote_server.archive.interface import ArchiveIdentity, ArchiveSettings, IndexedSlices, VolumeRecord
from slicevote_server.runtime import Numerics

DIMENSION = 16
IDENTITY = ArchiveIdentity("tiny", "0" * 64, DIMENSION, "fp32", {"version": 1})
NUMERICS = Numerics("onnxruntime", "CPUExecutionProvider", "fp32")

# Graphs even over a few slices, so that what is tested is the graph and not the exhaustive comparison.
GRAPHS = ArchiveSettings(indexing_threshold_kb=1, segment_count=1, optimize_after=10**9)


def unit(generator: np.random.Generator, count: int, dimension: int = DIMENSION) -> np.ndarray:
    """Random vectors of unit length, float32 [count, dimension]."""
    vectors = generator.normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def volume(
    name: str,
    embeddings: np.ndarray,
    *,
    patient: str = "",
    study: str = "",
    series: str = "",
    spacing: tuple[float, float] | None = None,
    given: Mapping[str, str] | None = None,
    **labels: str,
) -> tuple[VolumeRecord, IndexedSlices]:
    """A volume with one blank slice after these; its labels are the keywords and those of `given`."""
    count = len(embeddings)
    record = VolumeRecord(
        volume_id=name,
        modality="CT",
        labels={**labels, **(given or {})},
        patient_key=patient,
        source=f"{name}.nii",
        study_instance_uid=study,
        series_instance_uid=series,
        positions_mm=tuple(5.0 * index for index in range(count + 1)),
        indexed_slices=tuple(range(count)),
        sop_instance_uids=tuple(f"1.2.3.{index}" for index in range(count)),
        blank_slice_count=1,
        ingested_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        revision=1 + secrets.randbelow(2**40),
        pixel_spacing_mm=spacing,
    )
    return record, IndexedSlices(record.indexed_slices, embeddings, tuple(b"picture %d" % i for i in range(count)))
