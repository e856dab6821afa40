"""Timing in turns, and the form of a result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

_CALM_S = 0.1


@dataclass(frozen=True)
class Result:
    """One figure of results.json."""

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    reference: str
    note: str


@dataclass(frozen=True)
class Sample:
    """The times of one side, in seconds."""

    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Their median."""
        return statistics.median(self.times_s)

    def __str__(self) -> str:
        return f"{self.median_s:.4f} s ({min(self.times_s):.4f} to {max(self.times_s):.4f})"


def in_turns(sides: Mapping[str, Callable[[], object]], runs: int = 5) -> dict[str, Sample]:
    """Run every side once to warm up, then all sides in turn, `runs` times."""
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            # Threads of the side before may still spin; they are not this one's fault.
            time.sleep(_CALM_S)
            started = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - started)
    return {name: Sample(tuple(values)) for name, values in times.items()}


def ratio(name: str, ours: Sample, theirs: Sample, *, reference: str, note: str = "") -> Result:
    """Return how many times as long our side takes."""
    described = f"ours {ours}, reference {theirs}, {len(ours.times_s)} runs in turn"
    return Result(name, ours.median_s / theirs.median_s, "x", "lower", reference, f"{described}. {note}".strip())
