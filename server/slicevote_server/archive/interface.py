"""What the engine asks of an archive, whatever stands behind it.

The archive is the truth: slice vectors and volume records live in it and nowhere else. One rule makes every reader
consistent without a lock: *a slice belongs to the archive only while the record of its volume names its revision*.
Slices are written first and the record last, so the record is what makes a volume be there; a replaced, deleted or
half-written volume's slices may still lie on the disk for a while, but they are nobody's.
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
    """Where the nearest slices are looked up."""

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
        revision: Which state of the volume this is; new with every ingest, 1 to 2^47.
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

    @property
    def slice_count(self) -> int:
        """Number of slices of the volume, indexed or not."""
        return len(self.positions_mm)

    def sop_instance_uid(self, index: int) -> str:
        """Gives the UID of an indexed slice, or nothing."""
        place = bisect.bisect_left(self.indexed_slices, index)
        found = place < len(self.indexed_slices) and self.indexed_slices[place] == index
        return self.sop_instance_uids[place] if found else ""


@dataclass(frozen=True)
class IndexedSlices:
    """Slices on their way into an archive, or out of it, in order of their indices.

    Attributes:
        indices: Indices in the volume, ascending.
        embeddings: float32 [N, D], unit length.
        thumbnails: WebP, one a slice; empty where there are none.
    """

    indices: tuple[int, ...]
    embeddings: NDArray[np.float32]
    thumbnails: tuple[bytes, ...]


@dataclass(frozen=True)
class Scope:
    """Which volumes may be hit. All conditions hold together.

    Attributes:
        labels: Pairs of a label and the values of which it must have one.
        exclude_volume_ids: Volumes that may not be hit.
        exclude_patient_keys: Patients whose volumes may not be hit.
    """

    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude_volume_ids: frozenset[str] = frozenset()
    exclude_patient_keys: frozenset[str] = frozenset()
    exclude_study_instance_uids: frozenset[str] = frozenset()
    exclude_series_instance_uids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.labels or self.exclude_volume_ids or self.exclude_patient_keys)


EVERYTHING = Scope()


@dataclass(frozen=True)
class Neighbours:
    """The nearest slices of several queries.

    Attributes:
        hits: For every query its hits, best first; fewer than asked for where the archive has no more.
        exact: They were found by exhaustive comparison.
    """

    hits: list[list[Hit]]
    exact: bool


@dataclass(frozen=True)
class ArchiveIdentity:
    """What an archive was made with. Vectors made otherwise do not compare, so an archive opens only for its own.

    Attributes:
        backbone: Name of the backbone.
        weights_sha256: Its weights.
        dimension: Length of a vector.
        precision: Precision of the ONNX file.
        intensity_policy: The settings of the intensity policy, as plain data.
    """

    backbone: str
    weights_sha256: str
    dimension: int
    precision: str
    intensity_policy: Mapping[str, object] = field(default_factory=dict)


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

    All methods may be called from several threads and may block. They raise `ArchiveUnavailable` where the engine
    behind them stopped in the middle of the call; calling again is then right.
    """

    @property
    def identity(self) -> ArchiveIdentity:
        """What the archive was made with."""
        ...

    @property
    def restart_count(self) -> int:
        """How often the engine behind it has been restarted."""
        ...

    def numerics(self) -> Numerics | None:
        """Gives what its vectors are computed with; None for one that has none."""
        ...

    def record_numerics(self, numerics: Numerics) -> None:
        """Writes down what its vectors are computed with, unless that is known already."""
        ...

    def require_room(self, needed_bytes: int) -> None:
        """Insists on room for so much more.

        Raises:
            Overloaded: There is none.
        """
        ...

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Adds a volume, or replaces the one of the same name; it is on the disk when this returns.

        Returns:
            Whether an earlier one was replaced.
        """
        ...

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Takes a volume out, durably. Gives what it was, or None if there was none."""
        ...

    def records(self, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
        """Gives the records of those volumes that are there."""
        ...

    def list_ids(self, labels: Sequence[tuple[str, tuple[str, ...]]] = ()) -> list[str]:
        """Gives the names of all volumes with these labels, in order."""
        ...

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return, for every label that volumes have, its values and how many volumes have each."""
        ...

    def is_empty(self) -> bool:
        """Tells whether there is no volume."""
        ...

    def revisions(self) -> dict[str, int]:
        """Gives the revision of every volume."""
        ...

    def fingerprint(self) -> int:
        """Gives a number that stands for the set of all revisions: their exclusive or."""
        ...

    def thumbnails(self, record: VolumeRecord, indices: Collection[int]) -> dict[int, bytes]:
        """Gives the thumbnails of those of the slices that have one."""
        ...

    def slices(self, record: VolumeRecord) -> IndexedSlices:
        """Gives the indexed slices of a volume with their vectors, without thumbnails."""
        ...

    def nearest(
        self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING, exact: bool = False
    ) -> Neighbours:
        """Looks up the nearest slices by cosine.

        Ties go to the lower volume id, then to the lower slice index. A scope costs no recall: where the graph could
        miss under it, the comparison is exhaustive.

        Args:
            queries: float32 [N, D], unit length, finite.
            neighbours: Hits wanted for every query.
            scope: Which volumes may be hit.
            exact: Compare exhaustively.
        """
        ...

    def rescore(
        self, queries: NDArray[np.float32], candidates: Sequence[Sequence[tuple[int, int]]], *, neighbours: int
    ) -> list[list[Hit]]:
        """Compares every query with its own candidates by cosine.

        Args:
            queries: float32 [N, D], unit length, finite.
            candidates: For every query revision and index of the slices to compare it with.
            neighbours: Hits wanted for every query; best first, ties as in `nearest`.
        """
        ...

    def occupancy(self) -> Occupancy:
        """Tells how full the archive is."""
        ...

    def close(self) -> None:
        """Closes the archive. Nothing may be called after."""
        ...
