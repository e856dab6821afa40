"""Voting: from hits to a ranking of volumes (paper, section II-D).

A *hit* is a slice of the archive that is among the nearest to a query slice. The *hit table* holds them all; a
ranking is computed from it, and nothing else. Everything here is deterministic and independent of the order in which
slices came in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

DEFAULT_SIGMA = 1 / 6
"""Width of the Gaussian, as a fraction of the volume. The paper gives none; 1/6 puts the border at three sigma."""

_ROUNDING = 1e-9
"""Relative rounding error of a sum of votes, at most."""


class Hit(NamedTuple):
    """One slice of the archive that a query slice found.

    Attributes:
        volume_id: Its volume.
        revision: The state of the volume that the slice belongs to.
        slice_index: Its index in the volume.
        similarity: Cosine of the two, or what the index offers in its place.
    """

    volume_id: str
    revision: int
    slice_index: int
    similarity: float


@runtime_checkable
class Aggregation(Protocol):
    """How hits become votes."""

    def weight(self, index: int, slice_count: int) -> float:
        """Return the most that a hit can vote: one of slice `index` of a query of `slice_count` slices."""
        ...

    def vote(self, weight: float, similarity: float) -> float:
        """Return the vote of a hit, 0 to `weight`."""
        ...


@dataclass(frozen=True)
class CountVotes:
    """Every hit votes 1: the paper's *all slices*."""

    def weight(self, index: int, slice_count: int) -> float:
        """Return 1."""
        return 1.0

    def vote(self, weight: float, similarity: float) -> float:
        """Return the weight."""
        return weight


@dataclass(frozen=True)
class GaussianVotes:
    """Slices near the middle count more: the paper's *weighted slices*."""

    sigma: float = DEFAULT_SIGMA

    def weight(self, index: int, slice_count: int) -> float:
        """Return exp(-0.5 ((i - (n-1)/2) / (sigma n))^2)."""
        distance = (index - (slice_count - 1) / 2) / (self.sigma * slice_count)
        return math.exp(-0.5 * distance * distance)

    def vote(self, weight: float, similarity: float) -> float:
        """Return the weight."""
        return weight


@dataclass(frozen=True)
class SimilarityVotes:
    """Every hit votes its similarity, not below 0."""

    def weight(self, index: int, slice_count: int) -> float:
        """Return 1, the greatest cosine."""
        return 1.0

    def vote(self, weight: float, similarity: float) -> float:
        """Return the similarity between 0 and the weight."""
        return min(max(similarity, 0.0), weight)


@dataclass(frozen=True)
class SliceHit:
    """A hit and the query slice that it belongs to, with what it voted."""

    query_slice: int
    hit: Hit
    vote: float


@dataclass(frozen=True)
class Candidate:
    """A volume that got votes.

    Attributes:
        volume_id: Its name.
        votes: Sum of the votes of its hits.
        similarity_sum: Sum of the similarities of its hits.
        hits: Its hits, by query slice.
        score: Late-interaction score, where it was re-ranked.
        slab: First and last slice of the part of the volume where the query lies, where it was re-ranked.
    """

    volume_id: str
    votes: float
    similarity_sum: float
    hits: tuple[SliceHit, ...]
    score: float | None = None
    slab: tuple[int, int] | None = None


@dataclass
class HitTable:
    """The hits of every query slice so far.

    Attributes:
        slice_count: Number of slices of the query volume, for the weights.
        aggregation: How hits become votes.
    """

    slice_count: int
    aggregation: Aggregation = field(default_factory=CountVotes)
    _hits: dict[int, tuple[Hit, ...]] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)

    def record(self, query_slice: int, hits: Sequence[Hit]) -> None:
        """Record the hits of one query slice, replacing any it had."""
        weight = self.aggregation.weight(query_slice, self.slice_count)
        for sign, entered in ((-1, self._hits.get(query_slice, ())), (1, hits)):
            for hit in entered:
                vote = sign * self.aggregation.vote(weight, hit.similarity)
                self._sums[hit.volume_id] = self._sums.get(hit.volume_id, 0.0) + vote
        self._hits[query_slice] = tuple(hits)

    def standing(self) -> dict[str, float]:
        """Return the votes as running sums: equal to `votes` but for rounding, and free."""
        return dict(self._sums)

    def __len__(self) -> int:
        return len(self._hits)

    def hits(self) -> Mapping[int, tuple[Hit, ...]]:
        """Return every slice's hits."""
        return self._hits

    def slice_hits(self) -> tuple[SliceHit, ...]:
        """Return all hits with their votes, by query slice and then by similarity."""
        return tuple(self._voting())

    def votes(self) -> dict[str, float]:
        """Return the sum of votes of every volume that has a hit."""
        sums: dict[str, list[float]] = defaultdict(list)
        for entry in self._voting():
            sums[entry.hit.volume_id].append(entry.vote)
        return {volume: math.fsum(votes) for volume, votes in sums.items()}

    def ranking(self) -> list[Candidate]:
        """Rank the volumes: most votes, then the greater sum of similarity, then the lower volume id."""
        by_volume: dict[str, list[SliceHit]] = defaultdict(list)
        for entry in self._voting():
            by_volume[entry.hit.volume_id].append(entry)
        candidates = [
            Candidate(
                volume_id=volume,
                # fsum is exact: equal votes are equal whatever the order in which they were cast.
                votes=math.fsum(entry.vote for entry in entries),
                similarity_sum=math.fsum(entry.hit.similarity for entry in entries),
                hits=tuple(entries),
            )
            for volume, entries in by_volume.items()
        ]
        return sorted(
            candidates, key=lambda candidate: (-candidate.votes, -candidate.similarity_sum, candidate.volume_id)
        )

    def _voting(self) -> Iterable[SliceHit]:
        for query_slice in sorted(self._hits):
            weight = self.aggregation.weight(query_slice, self.slice_count)
            for hit in self._hits[query_slice]:
                yield SliceHit(query_slice, hit, self.aggregation.vote(weight, hit.similarity))


def is_decided(votes: Mapping[str, float], outstanding: float) -> bool:
    """Return whether the first match is certain: no vote still to come can change it.

    Args:
        votes: The votes so far, by volume.
        outstanding: The most that a single volume can still get.
    """
    if not votes:
        return False
    best, *others = sorted(votes.values(), reverse=True)
    lead = best - (others[0] if others else 0.0)
    # A lead that is only rounding is a draw.
    return lead - outstanding > _ROUNDING * best


def label_votes(
    candidates: Sequence[Candidate], labels_of: Callable[[str], Mapping[str, str]]
) -> dict[str, list[tuple[str, float]]]:
    """Sum the votes by label.

    Args:
        candidates: Every volume with votes.
        labels_of: Returns the labels of a volume.

    Returns:
        For every label that any candidate has, its values and their votes, most votes first; volumes that lack the
        label count under the empty value.
    """
    labels = {candidate.volume_id: labels_of(candidate.volume_id) for candidate in candidates}
    result: dict[str, list[tuple[str, float]]] = {}
    for key in sorted({key for mapping in labels.values() for key in mapping}):
        sums: dict[str, list[float]] = defaultdict(list)
        for candidate in candidates:
            sums[labels[candidate.volume_id].get(key, "")].append(candidate.votes)
        totals = [(value, math.fsum(votes)) for value, votes in sums.items()]
        result[key] = sorted(totals, key=lambda entry: (-entry[1], entry[0]))
    return result
