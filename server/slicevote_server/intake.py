"""Checks on the slices of one volume against its plan, and their preparation for the backbone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slicevote_volumes import IntensityRange, Slice

from slicevote_server.errors import InvalidInput
from slicevote_server.intensity import GreySlice, IntensityPolicy, prepare

_NAMED_SLICES = 10


@dataclass(frozen=True)
class VolumeHeader:
    """What is known of a volume before any slice of it has arrived.

    Attributes:
        volume_id: Its name.
        modality: DICOM modality code; empty if unknown.
        positions_mm: Position of every slice along the slices' normal, ascending.
        intensity_range: Values to show as black and white, for all but CT.
        pixel_spacing_mm: Distance between rows and between columns; None if unknown.
    """

    volume_id: str
    modality: str
    positions_mm: tuple[float, ...]
    intensity_range: IntensityRange | None = None
    pixel_spacing_mm: tuple[float, float] | None = None

    @property
    def slice_count(self) -> int:
        """Number of slices of the volume."""
        return len(self.positions_mm)


class Intake:
    """Takes the planned slices of one volume, each once, in any order, and prepares them.

    Args:
        header: The volume.
        plan: Indices of the slices that are wanted, in the order in which they are wanted.
        policy: How pixels become grey values.
        thumbnails: Also make thumbnails.
    """

    def __init__(self, header: VolumeHeader, plan: Sequence[int], policy: IntensityPolicy, *, thumbnails: bool) -> None:
        self.header = header
        self.plan = tuple(plan)
        self._policy = policy
        self._thumbnails = thumbnails
        self._planned = frozenset(plan)
        self._missing = set(plan)
        self._shape: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self.blank_count = 0

    @property
    def received_count(self) -> int:
        """Number of slices that have arrived."""
        return len(self.plan) - len(self._missing)

    def take(self, slices: Iterable[Slice]) -> list[GreySlice]:
        """Check and prepare slices; blank ones have no grey values.

        Raises:
            InvalidInput: A slice was not asked for, came twice, differs in size from the others, or has values that
                are not finite.
        """
        prepared = []
        for image in slices:
            self._admit(image)
            prepared.append(
                prepare(
                    image,
                    modality=self.header.modality,
                    intensity_range=self.header.intensity_range,
                    pixel_spacing_mm=self.header.pixel_spacing_mm,
                    policy=self._policy,
                    thumbnail=self._thumbnails,
                )
            )
        with self._lock:
            self.blank_count += sum(entry.grey is None for entry in prepared)
        return prepared

    def require_complete(self) -> None:
        """Make sure that every planned slice has arrived.

        Raises:
            InvalidInput: Some have not.
        """
        if self._missing:
            named = sorted(self._missing)[:_NAMED_SLICES]
            more = len(self._missing) - len(named)
            listed = ", ".join(map(str, named)) + (f" and {more} more" if more else "")
            raise InvalidInput(
                f"the stream ended before all {len(self.plan)} planned slices had arrived; missing: {listed}. Send "
                "every slice of the plan before closing the stream",
                reason="SLICES_MISSING",
                field="slice.index",
            )

    def _admit(self, image: Slice) -> None:
        with self._lock:
            if image.index not in self._planned:
                raise InvalidInput(
                    f"slice {image.index} is not in the plan; send only the planned slices",
                    reason="SLICE_NOT_PLANNED",
                    field="slice.index",
                )
            if image.index not in self._missing:
                raise InvalidInput(
                    f"slice {image.index} came twice; send every planned slice once",
                    reason="SLICE_REPEATED",
                    field="slice.index",
                )
            if self._shape is None:
                self._shape = image.pixels.shape
            if image.pixels.shape != self._shape:
                rows, columns = image.pixels.shape
                raise InvalidInput(
                    f"slice {image.index} has {rows} x {columns} pixels, the slices before it {self._shape[0]} x "
                    f"{self._shape[1]}; all slices of a volume have one size, so send two volumes",
                    reason="MIXED_SIZES",
                    field="slice.pixels",
                )
            self._missing.discard(image.index)
