"""Re-ranking by late interaction (MaxSim): how well every slice of the query finds a partner in a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import IndexedSlices
from slicevote_server.voting import Candidate

SLAB_SHARE = 0.9
"""The matched slab is the shortest run of slices that holds this share of the best-matching slices."""


@dataclass(frozen=True)
class Interaction:
    """How a volume matches the query.

    Attributes:
        score: Sum over query slices of the greatest cosine to a slice of the volume.
        slab: First and last slice of where the query lies in the volume.
    """

    score: float
    slab: tuple[int, int]


def rerank(
    query: NDArray[np.float32],
    candidates: Sequence[Candidate],
    slices_of: Callable[[str], IndexedSlices],
    *,
    count: int,
) -> list[Candidate]:
    """Order the best volumes by late interaction; the others follow in their order.

    Args:
        query: float32 [Q, D], unit length, Q >= 1: the query's slices.
        candidates: The volumes that got votes, best first.
        slices_of: Returns the indexed slices of a volume with their embeddings.
        count: How many of the candidates are scored.

    Returns:
        All candidates; those that were scored with `score` and `slab`, by score, then votes, similarity and name. A
        volume that has been deleted meanwhile has no slices left; it keeps its place by votes behind them.
    """
    scored, gone = [], []
    volumes = []
    for candidate in candidates[:count]:
        slices = slices_of(candidate.volume_id)
        if slices.indices:
            scored.append(candidate)
            volumes.append((slices.indices, slices.embeddings))
        else:
            gone.append(candidate)
    interactions = late_interaction(query, volumes)
    scored = [
        replace(candidate, score=interaction.score, slab=interaction.slab)
        for candidate, interaction in zip(scored, interactions, strict=True)
    ]
    scored.sort(key=lambda entry: (-(entry.score or 0.0), -entry.votes, -entry.similarity_sum, entry.volume_id))
    return [*scored, *gone, *candidates[count:]]


def late_interaction(
    query: NDArray[np.float32], volumes: Sequence[tuple[Sequence[int], NDArray[np.float32]]]
) -> list[Interaction]:
    """Score volumes against the query, with one matrix product.

    Args:
        query: float32 [Q, D], unit length: the query's slices.
        volumes: For every volume the indices of its slices, ascending, and their embeddings float32 [N, D], N >= 1.
    """
    if not volumes:
        return []
    lengths = [len(indices) for indices, _ in volumes]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    cosines = query @ np.concatenate([embeddings for _, embeddings in volumes]).T
    best = np.maximum.reduceat(cosines, starts, axis=1)
    interactions = []
    for place, (indices, _) in enumerate(volumes):
        columns = cosines[:, starts[place] : starts[place] + lengths[place]]
        partners = sorted(indices[column] for column in columns.argmax(axis=1))
        interactions.append(Interaction(math.fsum(best[:, place].tolist()), _shortest_run(partners)))
    return interactions


def _shortest_run(partners: Sequence[int]) -> tuple[int, int]:
    """Return the shortest interval that holds the share of the (ascending) partners; of equal ones the first."""
    needed = max(1, math.ceil(SLAB_SHARE * len(partners)))
    runs = [(partners[start + needed - 1] - partners[start], start) for start in range(len(partners) - needed + 1)]
    _, start = min(runs)
    return partners[start], partners[start + needed - 1]
