"""What every case found: first matches by column, counted by labels; and how the indexes agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from slicevote_server.evaluation.schemes import ALL, CANDIDATES, Scheme
from slicevote_server.evaluation.store import VolumeSlices
from slicevote_server.reranking import late_interaction
from slicevote_server.sampling import plan
from slicevote_server.voting import Candidate, Hit, HitTable

NO_MATCH = ""
"""Stands for the label of a case that found nothing: all its slices are blank, or none is in the sample."""

SAME_DISTANCE = 1e-5
"""Cosines this near are the same: what float32 leaves of 1,000 products in another order."""

Hits = Mapping[int, list[Hit]]
Labels = Mapping[str, str]
Pair = tuple[tuple[str, ...], tuple[str, ...] | None]
"""Labels of the case and of what it found, by level; None where it found nothing."""


@dataclass(frozen=True)
class QueryVolume:
    """A query volume, ready to vote.

    Attributes:
        slices: Its slices.
        embeddings: float32 [N, D] of those that are not blank.
        labels: Of its source, by level.
        weight: The share of its source's case that it is: a source of four protocols is one case, each a quarter.
    """

    slices: VolumeSlices
    embeddings: NDArray[np.float32]
    labels: tuple[str, ...]
    weight: Fraction


@dataclass
class Agreement:
    """How often an index finds what exact search finds.

    Attributes:
        slices: Query slices compared.
        as_near: Those whose first hit is as near as the exact one, by cosine.
        same_slice: Those whose first hit is the very same slice.
        exhaustive: Those that the index compared exhaustively.
        volumes: Query volumes compared.
        same_first_match: Those whose first match by `all` is the same volume.
    """

    slices: int = 0
    as_near: int = 0
    same_slice: int = 0
    exhaustive: int = 0
    volumes: int = 0
    same_first_match: int = 0


@dataclass
class Outcomes:
    """What all cases found with one backbone.

    Attributes:
        counts: For index and scheme: how many cases of these labels found something of those.
        agreements: By index.
    """

    counts: dict[tuple[str, str], Counter[Pair]] = field(default_factory=lambda: defaultdict(Counter))
    agreements: dict[str, Agreement] = field(default_factory=lambda: defaultdict(Agreement))

    def count(
        self, index: str, scheme: str, query: QueryVolume, found: tuple[str, ...] | None, share: Fraction
    ) -> None:
        """Adds a case, or the share of one."""
        counter = self.counts[index, scheme]
        pair = (query.labels, found)
        counter[pair] = counter[pair] + share  # type: ignore[assignment]  # a Counter of fractions counts just as well


def vote(
    query: QueryVolume,
    tables: Mapping[str, Hits],
    schemes: Sequence[Scheme],
    interactions: Mapping[str, float],
    labels_of: Mapping[str, tuple[str, ...]],
    outcomes: Outcomes,
) -> dict[str, str]:
    """Lets a query volume vote by every column and index.

    Args:
        query: The volume.
        tables: Its hits, by index.
        schemes: The columns.
        interactions: Late-interaction score of every candidate.
        labels_of: Labels of every database volume.
        outcomes: Where it is counted.

    Returns:
        The first match of the first column that counts all slices, by index; nothing where there is none.
    """
    plans = {scheme.name: plan(scheme.sampling, query.slices.positions_mm) for scheme in schemes}
    first: dict[str, str] = {}
    for index, hits in tables.items():
        for scheme in schemes:
            if scheme.by_slice:
                for slice_hits in hits.values():
                    matched = labels_of[slice_hits[0].volume_id] if slice_hits else None
                    outcomes.count(index, scheme.name, query, matched, Fraction(1))
                continue
            ranking = _ranking(query, hits, scheme, plans[scheme.name])
            if scheme.late_interaction:
                ranking = _rerank(ranking, interactions)
            volume_id = ranking[0].volume_id if ranking else None
            matched = None if volume_id is None else labels_of[volume_id]
            outcomes.count(index, scheme.name, query, matched, query.weight)
            if scheme.name == ALL and volume_id is not None:
                first[index] = volume_id
    return first


def candidates(query: QueryVolume, tables: Mapping[str, Hits], scheme: Scheme) -> list[str]:
    """Gives the volumes that late interaction re-ranks, over all indexes, in order of their names."""
    chosen: set[str] = set()
    for hits in tables.values():
        ranking = _ranking(query, hits, scheme, plan(scheme.sampling, query.slices.positions_mm))
        chosen.update(candidate.volume_id for candidate in ranking[:CANDIDATES])
    return sorted(chosen)


def interact(query: QueryVolume, volumes: Mapping[str, tuple[VolumeSlices, NDArray[np.float32]]]) -> dict[str, float]:
    """Gives the late-interaction score of every candidate."""
    found = late_interaction(query.embeddings, [(slices.indices, matrix) for slices, matrix in volumes.values()])
    return {name: interaction.score for name, interaction in zip(volumes, found, strict=True)}


def agree(
    query: QueryVolume,
    tables: Mapping[str, Hits],
    exact: str,
    volumes: Mapping[str, tuple[VolumeSlices, NDArray[np.float32]]],
    exhaustive: Mapping[str, bool],
    first: Mapping[str, str],
    outcomes: Outcomes,
) -> None:
    """Compares the first hits of every index with those of exact search, by their true distance.

    Args:
        query: The volume.
        tables: Its hits, by index.
        exact: Which of them is the exact one.
        volumes: Every volume that was hit first.
        exhaustive: Whether an index compared exhaustively.
        first: First match by `all`, by index.
        outcomes: Where it is counted.
    """
    truth = tables[exact]
    places = [place for place, index in enumerate(query.slices.indices) if truth[index]]
    slices = [query.slices.indices[place] for place in places]
    own = query.embeddings[places]
    nearest = _cosines(own, [truth[index][0] for index in slices], volumes)
    for name, hits in tables.items():
        agreement = outcomes.agreements[name]
        agreement.volumes += 1
        agreement.same_first_match += first.get(name) == first.get(exact)
        agreement.slices += len(slices)
        agreement.exhaustive += len(slices) * exhaustive[name]
        # An index that finds nothing where the exact one does has not found the nearest.
        kept = [row for row, index in enumerate(slices) if hits[index]]
        same = [hits[slices[row]][0][:3] == truth[slices[row]][0][:3] for row in kept]
        found = _cosines(own[kept], [hits[slices[row]][0] for row in kept], volumes)
        as_near = found >= nearest[kept] - SAME_DISTANCE
        agreement.same_slice += sum(same)
        agreement.as_near += int(np.count_nonzero(as_near | np.asarray(same, dtype=bool)))


def _ranking(query: QueryVolume, hits: Hits, scheme: Scheme, chosen: Sequence[int]) -> list[Candidate]:
    table = HitTable(query.slices.slice_count, scheme.aggregation)
    for index in chosen:
        if index in hits:
            table.record(index, hits[index][: scheme.neighbours])
    return table.ranking()


def _rerank(ranking: list[Candidate], scores: Mapping[str, float]) -> list[Candidate]:
    """Orders the best volumes by their scores; equal ones stay in the order of their votes."""
    return sorted(ranking[:CANDIDATES], key=lambda candidate: -scores[candidate.volume_id])


def _cosines(
    own: NDArray[np.float32],
    hits: Sequence[Hit],
    volumes: Mapping[str, tuple[VolumeSlices, NDArray[np.float32]]],
) -> NDArray[np.float64]:
    """Gives the cosine of every query slice and its hit, float64 [N]."""
    if not hits:
        return np.empty(0, np.float64)
    partners = []
    for hit in hits:
        slices, matrix = volumes[hit.volume_id]
        partners.append(matrix[np.searchsorted(slices.indices, hit.slice_index)])
    cosines: NDArray[np.float64] = np.einsum("nd,nd->n", own.astype(np.float64), np.stack(partners).astype(np.float64))
    return cosines
