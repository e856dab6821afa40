"""Late interaction: how well every slice of the query finds a partner in a volume (MaxSim)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def late_interaction(
    query: NDArray[np.float32], volumes: Sequence[tuple[Sequence[int], NDArray[np.float32]]]
) -> list[Interaction]:
    """Scores volumes against the query, all with one matrix product.

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
    """Gives the shortest interval that holds the share of the (ascending) partners; of equal ones the first."""
    needed = max(1, math.ceil(SLAB_SHARE * len(partners)))
    runs = [(partners[start + needed - 1] - partners[start], start) for start in range(len(partners) - needed + 1)]
    _, start = min(runs)
    return partners[start], partners[start + needed - 1]
