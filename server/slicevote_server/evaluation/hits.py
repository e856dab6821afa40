"""The hit tables: every query slice looked up once in every index, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import EVERYTHING, Neighbours, Scope
from slicevote_server.evaluation.schemes import NEIGHBOURS
from slicevote_server.evaluation.store import Found, HitStore
from slicevote_server.evaluation.timing import Times
from slicevote_server.voting import Hit

LookUp = Callable[[NDArray[np.float32], Scope, int], Neighbours]


@dataclass(frozen=True)
class Query:
    """What is looked up together with others.

    Attributes:
        key: Of the source.
        embeddings: float32 [N, D].
        excluded: Volumes that may not be hit.
    """

    key: str
    embeddings: NDArray[np.float32]
    excluded: frozenset[str]


class HitTables:
    """Looks up queries in one index, or remembers what an earlier run found.

    Args:
        index: Its name.
        look_up: Looks up.
        settings: What the hits depend on beside the database: the index's settings, as plain data.
        revisions: The database: every volume's revision.
        store: Where the hits are kept.
        times: Where the time is written down.
    """

    def __init__(
        self,
        index: str,
        look_up: LookUp,
        settings: Mapping[str, object],
        revisions: Mapping[str, int],
        store: HitStore,
        times: Times,
    ) -> None:
        self.index = index
        self._look_up = look_up
        self._revisions = revisions
        self._store = store
        self._times = times
        self._asked = _digest([index, NEIGHBOURS, dict(settings), sorted(revisions.items())])

    def find(self, queries: Sequence[Query], exhaustive: Sequence[Found | None] = ()) -> list[Found]:
        """Gives the hits of several sources.

        Args:
            queries: What is looked up.
            exhaustive: What has been found for them by exhaustive comparison already, if this index compares so, too.
        """
        keys = [_digest([self._asked, query.key, sorted(query.excluded)]) for query in queries]
        found = [self._store.load(key) for key in keys]
        for place, same in enumerate(exhaustive):
            if found[place] is None and same is not None:
                self._store.save(keys[place], same)
                found[place] = same
        missing = [place for place, entry in enumerate(found) if entry is None]
        for excluded in dict.fromkeys(queries[place].excluded for place in missing):
            together = [place for place in missing if queries[place].excluded == excluded]
            for place, fresh in zip(together, self._search([queries[place] for place in together]), strict=True):
                self._store.save(keys[place], fresh)
                found[place] = fresh
        return [entry for entry in found if entry is not None]

    def hits(self, found: Found, rows: slice, indices: Sequence[int]) -> dict[int, list[Hit]]:
        """Gives the hits of one volume, by slice.

        Args:
            found: The hits of its source.
            rows: Where the volume's slices lie among the source's.
            indices: Their indices in the volume.
        """
        revisions = [self._revisions[name] for name in found.names]
        table: dict[int, list[Hit]] = {}
        for index, volumes, slices, similarities in zip(
            indices,
            found.volumes[rows].tolist(),
            found.slices[rows].tolist(),
            found.similarities[rows].tolist(),
            strict=True,
        ):
            table[index] = [
                Hit(found.names[volume], revisions[volume], hit_slice, similarity)
                for volume, hit_slice, similarity in zip(volumes, slices, similarities, strict=True)
                if volume >= 0
            ]
        return table

    def _search(self, queries: Sequence[Query]) -> list[Found]:
        embeddings = np.concatenate([query.embeddings for query in queries])
        excluded = queries[0].excluded
        if len(embeddings):
            with self._times.stage(f"search {self.index}"):
                scope = Scope(exclude_volume_ids=excluded) if excluded else EVERYTHING
                neighbours = self._look_up(embeddings, scope, NEIGHBOURS)
            self._times.searched_slices[self.index] += len(embeddings)
        else:
            neighbours = Neighbours([], exact=False)
        results, start = [], 0
        for query in queries:
            results.append(_pack(neighbours.hits[start : start + len(query.embeddings)], neighbours.exact))
            start += len(query.embeddings)
        return results


def _pack(table: Sequence[Sequence[Hit]], exhaustive: bool) -> Found:
    names = sorted({hit.volume_id for hits in table for hit in hits})
    places = {name: place for place, name in enumerate(names)}
    volumes = np.full((len(table), NEIGHBOURS), -1, np.int32)
    slices = np.zeros((len(table), NEIGHBOURS), np.int32)
    similarities = np.zeros((len(table), NEIGHBOURS), np.float64)
    for row, hits in enumerate(table):
        for column, hit in enumerate(hits):
            volumes[row, column] = places[hit.volume_id]
            slices[row, column] = hit.slice_index
            similarities[row, column] = hit.similarity
    return Found(tuple(names), volumes, slices, similarities, exhaustive)


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
