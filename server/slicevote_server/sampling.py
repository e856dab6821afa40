"""Sampling: which slices of a volume are used, and in which order (paper, section II-D c).

A scheme is a frozen dataclass with one method, `choose`, that takes the slices' positions and gives indices. The
order in which they are asked for is the same for all schemes: coarse to fine, so that the first few already
represent the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class SamplingScheme(Protocol):
    """Chooses slices by their positions."""

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return indices into `positions_mm` (ascending), unique and ascending."""
        ...


@dataclass(frozen=True)
class AllSlices:
    """Every slice."""

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return every index."""
        return list(range(len(positions_mm)))


@dataclass(frozen=True)
class RandomSlices:
    """A number of slices, uniformly at random and without replacement; all of them if there are fewer."""

    count: int
    seed: int = 0

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return `count` indices; the same seed gives the same."""
        total = len(positions_mm)
        generator = np.random.Generator(np.random.PCG64(self.seed))
        chosen = generator.choice(total, size=min(self.count, total), replace=False)
        return sorted(int(index) for index in chosen)


@dataclass(frozen=True)
class EveryMillimetres:
    """The slices nearest to positions z0, z0 + gap, z0 + 2 gap, ... up to the last slice."""

    gap_mm: float

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return the nearest slice of every position; of two equally near ones the lower."""
        positions = np.asarray(positions_mm, dtype=np.float64)
        # A slice is the nearest one between the middles to its neighbours; it is chosen if one of the positions lies
        # there. The cost does not depend on the gap. The tolerance keeps a position that is meant to be exactly on a
        # slice, or exactly in the middle of two, from being lost to rounding.
        middles = (positions[:-1] + positions[1:]) / 2
        upper = np.concatenate([middles, positions[-1:]]) + 1e-6 * self.gap_mm
        lower = np.concatenate([[-np.inf], upper[:-1]])
        last_wanted = positions[0] + self.gap_mm * np.floor((upper - positions[0]) / self.gap_mm)
        return [int(index) for index in np.flatnonzero(last_wanted > lower)]


@dataclass(frozen=True)
class EveryNthSlice:
    """Slices 0, step, 2 step, ..."""

    step: int

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return every step-th index."""
        return list(range(0, len(positions_mm), self.step))


@dataclass(frozen=True)
class EvenlySpacedSlices:
    """A number of slices, each in the middle of one of as many equal parts of the volume."""

    count: int

    def choose(self, positions_mm: Sequence[float]) -> list[int]:
        """Return `count` indices, or all if there are fewer slices."""
        total = len(positions_mm)
        if self.count >= total:
            return list(range(total))
        return [(2 * part + 1) * total // (2 * self.count) for part in range(self.count)]


def progressive(chosen: Sequence[int]) -> list[int]:
    """Order slices from coarse to fine: the middle one, the quarters, the eighths, and so on."""
    bits = len(chosen).bit_length()

    def reversed_bits(rank: int) -> int:
        return int(format(rank + 1, f"0{bits}b")[::-1], 2)

    return [chosen[rank] for rank in sorted(range(len(chosen)), key=reversed_bits)]


def plan(scheme: SamplingScheme, positions_mm: Sequence[float], slab: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Return the slices to send, in the order in which they are wanted.

    Args:
        scheme: The scheme.
        positions_mm: Position of every slice of the volume, ascending.
        slab: First and last slice of the part that counts; the scheme then works on that part alone.
    """
    first, last = slab if slab is not None else (0, len(positions_mm) - 1)
    return tuple(first + index for index in progressive(scheme.choose(positions_mm[first : last + 1])))
