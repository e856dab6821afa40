"""The interface of an archive; `kinds` names the archives that implement it.

The archive is the source of truth: slice vectors and volume records are stored in it and nowhere else. One rule keeps
every reader consistent without a lock: *a slice belongs to the archive only while the record of its volume names its
revision*. Slices are written first and the record last, so writing the record commits the volume. Slices of a replaced,
deleted or half-written volume may stay on disk for a while, but no search returns them.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from slicevote_server.runtime.interface import Numerics
from slicevote_server.voting import Hit


class Index(Enum):
    """Index that the nearest slices are looked up in."""

    HNSW = "hnsw"
    LSH = "lsh"
    EXACT = "exact"


@dataclass(frozen=True)
class VolumeRecord:
    """A volume as the archive knows it; fields as in the message of the same name.

    Attributes:
        positions_mm: Position of every slice of the volume, indexed or not.
        indexed_slices: Indices of the slices in the index, ascending.
        sop_instance_uids: UID of every indexed slice, in the same order; empty strings where there are none.
        revision: State of the volume, 1 to 2^47; every ingest makes a new one.
        pixel_spacing_mm: Distances between rows and between columns; None where they are unknown.
    """

    volume_id: str
    modality: str
    labels: Mapping[str, str]
    patient_key: str
    source: str
    study_instance_uid: str
    series_instance_uid: str
    positions_mm: tuple[float, ...]
    indexed_slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...]
    blank_slice_count: int
    ingested_at: datetime
    revision: int
    pixel_spacing_mm: tuple[float, float] | None = None

    @property
    def slice_count(self) -> int:
        """Number of slices of the volume, indexed or not."""
        return len(self.positions_mm)

    def sop_instance_uid(self, index: int) -> str:
        """Return the UID of an indexed slice; empty if it has none or is not indexed."""
        place = bisect.bisect_left(self.indexed_slices, index)
        found = place < len(self.indexed_slices) and self.indexed_slices[place] == index
        return self.sop_instance_uids[place] if found else ""


@dataclass(frozen=True)
class IndexedSlices:
    """Slices to write to an archive, or read from it, in order of their indices.

    Attributes:
        indices: Indices in the volume, ascending.
        embeddings: float32 [N, D], unit length.
        thumbnails: WebP images, one per slice; empty where there are none.
    """

    indices: tuple[int, ...]
    embeddings: NDArray[np.float32]
    thumbnails: tuple[bytes, ...]

    def require_dimension(self, dimension: int) -> None:
        """Check the embeddings before they are written.

        Raises:
            ValueError: They are not finite, or not [N, dimension].
        """
        if self.embeddings.shape != (len(self.indices), dimension) or not np.isfinite(self.embeddings).all():
            raise ValueError(f"embeddings must be finite and of shape [{len(self.indices)}, {dimension}]")


LabelConditions = Sequence[tuple[str, tuple[str, ...]]]
"""Pairs of a label and its accepted values. A volume must satisfy all of them."""


@dataclass(frozen=True)
class Scope:
    """Volumes that a search may hit. All conditions hold together.

    Attributes:
        labels: Pairs of a label and its accepted values.
        exclude_volume_ids: Volumes that may not be hit.
        exclude_patient_keys: Patients whose volumes may not be hit.
        exclude_study_instance_uids: Studies whose volumes may not be hit.
        exclude_series_instance_uids: Series whose volumes may not be hit.
    """

    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude_volume_ids: frozenset[str] = frozenset()
    exclude_patient_keys: frozenset[str] = frozenset()
    exclude_study_instance_uids: frozenset[str] = frozenset()
    exclude_series_instance_uids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self != EVERYTHING


EVERYTHING = Scope()


@dataclass(frozen=True)
class Neighbours:
    """The nearest slices of several queries.

    Attributes:
        hits: The hits of every query, best first; fewer than requested where the archive has no more.
        exact: The comparison was exhaustive.
    """

    hits: list[list[Hit]]
    exact: bool


@dataclass(frozen=True)
class Page:
    """A page of a listing.

    Attributes:
        volume_ids: Volume ids in order.
        total_count: Volumes of the whole listing.
        has_more: There are volumes after this page.
    """

    volume_ids: tuple[str, ...]
    total_count: int
    has_more: bool


@dataclass(frozen=True)
class ArchiveIdentity:
    """What an archive was made for. Vectors made otherwise do not compare, so it opens only for the same identity.

    Attributes:
        backbone: Name of the backbone.
        weights_sha256: Digest of its weights.
        dimension: Length of a vector.
        precision: Precision of the ONNX file.
        intensity_policy: Settings of the intensity policy, as plain data.
    """

    backbone: str
    weights_sha256: str
    dimension: int
    precision: str
    intensity_policy: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What the volumes of an archive were made with, as far as the first of them decided it.

    Attributes:
        numerics: How their vectors were computed; None without volumes.
        patient_secret_fingerprint: Fingerprint of the secret of their patient keys, 16 hexadecimal digits; empty if no
            volume has a patient key, or if no client named its secret.
    """

    numerics: Numerics | None = None
    patient_secret_fingerprint: str = ""

    def completed_by(self, other: Provenance) -> Provenance:
        """Return this provenance with the gaps filled from another."""
        return Provenance(
            self.numerics or other.numerics, self.patient_secret_fingerprint or other.patient_secret_fingerprint
        )


@dataclass(frozen=True)
class ArchiveSettings:
    """How an archive builds and searches its HNSW graph, and how much of its disk it leaves free.

    Attributes:
        m: Edges per node.
        ef_construct: Candidates considered while building.
        ef_search: Candidates considered while searching. Embeddings of slices lie close together, which is hard for a
            graph: with half of it, and of the two above, 1 of 100 slices missed its nearest on real scans; with these
            values 1 of 5,000.
        segment_count: Segments that the optimizer aims at; more make it cheaper to add to a large archive.
        indexing_threshold_kb: Segments with less vector data than this get no graph and are compared exhaustively.
        optimize_after: Slices without a graph after which it is built even while requests wait.
        excluded_share_limit: A search that excludes more than this share of the slices is exhaustive.
        disk_reserve_bytes: Free space on the disk below which nothing is added.
    """

    m: int = 32
    ef_construct: int = 200
    ef_search: int = 256
    segment_count: int = 4
    indexing_threshold_kb: int = 10_000
    optimize_after: int = 16_384
    excluded_share_limit: float = 0.05
    disk_reserve_bytes: int = 64 << 20


@dataclass(frozen=True)
class Occupancy:
    """How full an archive is."""

    volume_count: int
    slice_count: int
    unindexed_slice_count: int
    disk_bytes: int


@runtime_checkable
class Archive(Protocol):
    """Slice vectors and volume records of one backbone.

    All methods may be called from several threads and may block. They raise `ArchiveUnavailable` if the engine behind
    the archive stopped during the call; the call may then be repeated.
    """

    @property
    def engine(self) -> str:
        """Kind of the archive: "edge" for an embedded one."""
        ...

    @property
    def identity(self) -> ArchiveIdentity:
        """What the archive was made for."""
        ...

    @property
    def restart_count(self) -> int:
        """Number of restarts of the engine behind the archive."""
        ...

    def provenance(self) -> Provenance:
        """Return what the volumes were made with; empty for an archive without volumes."""
        ...

    def record_provenance(self, provenance: Provenance) -> None:
        """Record what the volumes are made with, as far as it is not known yet."""
        ...

    def require_room(self, needed_bytes: int) -> None:
        """Check that there is room for this much more.

        Raises:
            Overloaded: There is not.
        """
        ...

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Add a volume or replace the one of the same name; it is durable when this returns.

        Returns:
            Whether an earlier one was replaced.

        Raises:
            Overloaded: There is no room.
            ValueError: The embeddings are not finite, or of another dimension than the archive.
        """
        ...

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Remove a volume durably and return its record, or None if there was none."""
        ...

    def records(self, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
        """Return the records of those of the volumes that exist."""
        ...

    def list_ids(self, labels: LabelConditions = (), *, prefix: str = "", after: str = "", limit: int) -> Page:
        """Return a page of volume ids, in order.

        Args:
            labels: Conditions that the volumes must satisfy.
            prefix: What their ids must begin with.
            after: Only ids greater than this; the last id of the page before.
            limit: Greatest number of ids.
        """
        ...

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return, for every label that volumes have, its values and how many volumes have each."""
        ...

    def is_empty(self) -> bool:
        """Return whether the archive has no volumes."""
        ...

    def revisions(self) -> dict[str, int]:
        """Return the revision of every volume, by volume id."""
        ...

    def fingerprint(self) -> int:
        """Return a number that stands for the set of all revisions: their exclusive or."""
        ...

    def thumbnails(self, record: VolumeRecord, indices: Collection[int]) -> dict[int, bytes]:
        """Return the thumbnails of those of the slices that have one, by slice index."""
        ...

    def slices(self, record: VolumeRecord) -> IndexedSlices:
        """Return the indexed slices of a volume with their vectors, without thumbnails."""
        ...

    def nearest(
        self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING, exact: bool = False
    ) -> Neighbours:
        """Return the nearest slices by cosine.

        Ties go to the lower volume id, then to the lower slice index. A scope costs no recall: where the graph could
        miss under it, the comparison is exhaustive.

        Args:
            queries: float32 [N, D], unit length, finite.
            neighbours: Hits per query.
            scope: Volumes that may be hit.
            exact: Compare exhaustively.
        """
        ...

    def rescore(
        self, queries: NDArray[np.float32], candidates: Sequence[Sequence[tuple[int, int]]], *, neighbours: int
    ) -> list[list[Hit]]:
        """Compare every query with its own candidates by cosine.

        Args:
            queries: float32 [N, D], unit length, finite.
            candidates: For every query, revision and index of the slices to compare it with.
            neighbours: Hits per query; best first, ties as in `nearest`.
        """
        ...

    def optimize(self) -> None:
        """Build the graph over everything now; an idle archive does so without being asked."""
        ...

    def occupancy(self) -> Occupancy:
        """Return how full the archive is."""
        ...

    def close(self) -> None:
        """Close the archive. Nothing may be called afterwards."""
        ...
