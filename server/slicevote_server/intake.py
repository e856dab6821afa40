"""The slices of one volume as they come in: checked against the plan, prepared, and counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slicevote_volumes import IntensityRange, Slice

from slicevote_server.errors import InvalidInput
from slicevote_server.intensity import GreySlice, IntensityPolicy, prepare

_NAMED_SLICES = 10


@dataclass(frozen=True)
class VolumeHeader:
    """What is known of a volume before any slice of it is there.

    Attributes:
        volume_id: Its name.
        modality: DICOM modality code; empty if unknown.
        positions_mm: Position of every slice along the slices' normal, ascending.
        intensity_range: Values to show as black and white, for all but CT.
    """

    volume_id: str
    modality: str
    positions_mm: tuple[float, ...]
    intensity_range: IntensityRange | None = None

    @property
    def slice_count(self) -> int:
        """Number of slices of the volume."""
        return len(self.positions_mm)


@dataclass
class StageTimes:
    """Where the time went, in seconds, summed over slices; stages overlap."""

    decoding_s: float = 0.0
    embedding_s: float = 0.0
    searching_s: float = 0.0
    waiting_s: float = 0.0
    total_s: float = 0.0


class Intake:
    """Takes the planned slices of one volume, each once, in any order, and prepares them.

    Args:
        header: The volume.
        plan: Indices of the slices that are wanted.
        policy: How grey values are made of pixels.
        thumbnails: Also make thumbnails.
    """

    def __init__(self, header: VolumeHeader, plan: Sequence[int], policy: IntensityPolicy, *, thumbnails: bool) -> None:
        self._header = header
        self._policy = policy
        self._thumbnails = thumbnails
        self._missing = set(plan)
        self._plan = frozenset(plan)
        self._size: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self.blank_count = 0
        self.times = StageTimes()
        self._started = time.perf_counter()

    @property
    def received_count(self) -> int:
        """Slices that have come in."""
        return len(self._plan) - len(self._missing)

    def take(self, slices: Iterable[Slice]) -> list[GreySlice]:
        """Checks and prepares slices; those that are blank have no grey values.

        Raises:
            InvalidInput: A slice was not asked for, came twice, differs in size from the others, or has values that
                are not finite.
        """
        prepared = []
        started = time.perf_counter()
        for image in slices:
            self._admit(image)
            prepared.append(
                prepare(
                    image,
                    modality=self._header.modality,
                    intensity_range=self._header.intensity_range,
                    policy=self._policy,
                    thumbnail=self._thumbnails,
                )
            )
        with self._lock:
            self.blank_count += sum(entry.grey is None for entry in prepared)
            self.times.decoding_s += time.perf_counter() - started
        return prepared

    def waited(self, seconds: float) -> None:
        """Adds time that went by waiting for the client."""
        with self._lock:
            self.times.waiting_s += seconds

    def embedded(self, seconds: float) -> None:
        """Adds time that went into the backbone."""
        with self._lock:
            self.times.embedding_s += seconds

    def searched(self, seconds: float) -> None:
        """Adds time that went into the index."""
        with self._lock:
            self.times.searching_s += seconds

    def finish(self) -> StageTimes:
        """Closes the account of the time."""
        self.times.total_s = time.perf_counter() - self._started
        return self.times

    def require_complete(self) -> None:
        """Insists on every planned slice.

        Raises:
            InvalidInput: Some have not come.
        """
        if self._missing:
            named = sorted(self._missing)[:_NAMED_SLICES]
            more = len(self._missing) - len(named)
            listed = ", ".join(map(str, named)) + (f" and {more} more" if more else "")
            raise InvalidInput(
                f"the stream ended, and of the {len(self._plan)} planned slices these have not come: {listed}; send "
                "every slice of the plan before closing the stream",
                reason="SLICES_MISSING",
                field="slice.index",
            )

    def _admit(self, image: Slice) -> None:
        with self._lock:
            if image.index not in self._plan:
                raise InvalidInput(
                    f"slice {image.index} is not in the plan; send the planned slices and no others",
                    reason="SLICE_NOT_PLANNED",
                    field="slice.index",
                )
            if image.index not in self._missing:
                raise InvalidInput(
                    f"slice {image.index} came twice; send every planned slice once",
                    reason="SLICE_REPEATED",
                    field="slice.index",
                )
            if self._size is None:
                self._size = image.pixels.shape
            if image.pixels.shape != self._size:
                rows, columns = image.pixels.shape
                raise InvalidInput(
                    f"slice {image.index} has {rows} x {columns} pixels, the ones before {self._size[0]} x "
                    f"{self._size[1]}; a volume's slices are of one size, send them as two volumes",
                    reason="MIXED_SIZES",
                    field="slice.pixels",
                )
            self._missing.discard(image.index)
