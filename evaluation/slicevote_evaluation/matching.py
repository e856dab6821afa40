"""Looks every query slice up once in every index, and lets every scheme vote: which case finds which."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np
import pandas as pd
from slicevote_server.archive.interface import EVERYTHING, Index, IndexedSlices, Neighbours, Scope
from slicevote_server.reranking import rerank
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.voting import Hit, HitTable

from slicevote_evaluation.database import volume_ids
from slicevote_evaluation.datasets import Case, Dataset
from slicevote_evaluation.embeddings import CaseContents, EmbeddingStore, VolumeOutline
from slicevote_evaluation.progress import Reporter
from slicevote_evaluation.schemes import ALL, CANDIDATES, NEIGHBOURS, Scheme

NOTHING = ""
"""Stands for the match of a case that found nothing: all slices are blank, or none of them is in the sample."""

SAME_DISTANCE = 1e-5
"""Cosines this close are equal: what float32 leaves of 1,000 products summed in another order."""

MATCH_COLUMNS = ["index", "scheme", "case", "match", "cases"]
AGREEMENT_COLUMNS = ["index", "slices", "as_near", "same_slice", "exhaustive", "volumes", "same_first_match"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Matches:
    """What the queries found with one backbone.

    Attributes:
        matches: One row for every index, scheme, query case and what it found: `index`, `scheme`, `case` (its name),
            `match` (name of the case of the first match, or `NOTHING`), and `cases`, how often. A case with four
            volumes has four rows of a quarter, or fewer; with the slice-wise scheme, every slice counts 1.
        agreement: One row for every index and query volume: `index`; `slices` that exact search found something for;
            of them, `as_near`: found a slice as near as the nearest, `same_slice`: found the same slice, and
            `exhaustive`: were compared exhaustively; `volumes` (1), and `same_first_match`: 1 if the first match by
            `ALL` is the same volume. Empty without exact search.
    """

    matches: pd.DataFrame
    agreement: pd.DataFrame


class Matcher:
    """Searches and votes with one backbone.

    Args:
        dataset: The cases.
        contents: What is in every case that could be read, by its name.
        served: The backbone and its archive.
        store: The embeddings.
        indexes: The indexes to look slices up in.
        schemes: The schemes that vote.
    """

    def __init__(
        self,
        dataset: Dataset,
        contents: Mapping[str, CaseContents],
        served: ServedBackbone,
        store: EmbeddingStore,
        indexes: Sequence[Index],
        schemes: Sequence[Scheme],
    ) -> None:
        self._contents = contents
        self._served = served
        self._store = store
        # After the others: where HNSW has compared exhaustively by itself, once is enough.
        self._indexes = sorted(indexes, key=lambda index: index is Index.EXACT)
        self._schemes = schemes
        readable = [case for case in dataset.cases if case.name in contents]
        self._queries = sorted((case for case in readable if case.is_query), key=attrgetter("patient", "name"))
        self._volumes: dict[str, tuple[Case, int]] = {}
        self._scopes: dict[str, Scope] = defaultdict(lambda: EVERYTHING)
        own = defaultdict(set)
        for case in readable:
            if case.is_database:
                for ordinal, volume_id in enumerate(volume_ids(case, contents[case.name])):
                    self._volumes[volume_id] = case, ordinal
                    own[case.patient].add(volume_id)
        if dataset.leave_one_patient_out:
            self._scopes.update((patient, Scope(exclude_volume_ids=frozenset(ids))) for patient, ids in own.items())

    def match(self, reporter: Reporter, title: str) -> Matches:
        """Search for every query case.

        Args:
            reporter: Told about the progress.
            title: What the progress is called.
        """
        matches: list[tuple[object, ...]] = []
        agreement: list[tuple[object, ...]] = []
        total = sum(self._contents[case.name].slice_count for case in self._queries)
        groups = (list(group) for _, group in itertools.groupby(self._queries, key=attrgetter("patient")))
        with reporter.stage(title, total, "slices") as advance:
            for cases, neighbours in _one_ahead(self._search, groups):
                start = 0
                for case in cases:
                    outlines, volumes = self._contents[case.name].volumes, self._store.load(case.key)
                    for outline, slices in zip(outlines, volumes, strict=True):
                        end = start + len(slices.indices)
                        hits = {index: found.hits[start:end] for index, found in neighbours.items()}
                        votes = self._votes(outline, slices, hits)
                        for index, by_scheme in votes.items():
                            for scheme, found in by_scheme.items():
                                for match, count in found.items():
                                    share = count if scheme.slice_wise else 1 / len(volumes)
                                    name = self._volumes[match][0].name if match else NOTHING
                                    matches.append((index.name, scheme.name, case.name, name, share))
                        if Index.EXACT in hits:
                            agreement += self._agreement(slices, hits, votes, neighbours)
                        start = end
                        advance(len(slices.indices))
        frame = pd.DataFrame(matches, columns=MATCH_COLUMNS)
        return Matches(
            frame.groupby(MATCH_COLUMNS[:-1], sort=False)["cases"].sum().reset_index(),
            pd.DataFrame(agreement, columns=AGREEMENT_COLUMNS),
        )

    def _search(self, cases: Sequence[Case]) -> tuple[Sequence[Case], dict[Index, Neighbours]]:
        """Look up all slices of the query cases of one patient, in order."""
        queries = np.concatenate([slices.embeddings for case in cases for slices in self._store.load(case.key)])
        scope = self._scopes[cases[0].patient]
        neighbours: dict[Index, Neighbours] = {}
        for index in self._indexes:
            hnsw = neighbours.get(Index.HNSW)
            if not len(queries):
                neighbours[index] = Neighbours([], exact=False)
            elif index is Index.EXACT and hnsw is not None and hnsw.exact:
                neighbours[index] = hnsw
            else:
                neighbours[index] = self._served.nearest(queries, index=index, neighbours=NEIGHBOURS, scope=scope)
        return cases, neighbours

    def _votes(
        self, outline: VolumeOutline, slices: IndexedSlices, hits: Mapping[Index, list[list[Hit]]]
    ) -> dict[Index, dict[Scheme, Counter[str]]]:
        """Return how often a query volume finds which volume (or `NOTHING`), by index and scheme."""
        votes: dict[Index, dict[Scheme, Counter[str]]] = {}
        for index, own in hits.items():
            # HNSW and exact search mostly find the same, and the same hits vote the same.
            same = next((other for other in votes if hits[other] == own), None)
            votes[index] = (
                {scheme: self._first_matches(outline, slices, own, scheme) for scheme in self._schemes}
                if same is None
                else votes[same]
            )
        return votes

    def _first_matches(
        self, outline: VolumeOutline, slices: IndexedSlices, hits: Sequence[Sequence[Hit]], scheme: Scheme
    ) -> Counter[str]:
        if scheme.slice_wise:
            return Counter(found[0].volume_id if found else NOTHING for found in hits)
        table = HitTable(len(outline.positions_mm), scheme.aggregation)
        chosen = set(scheme.sampling.choose(outline.positions_mm))
        for slice_index, found in zip(slices.indices, hits, strict=True):
            if slice_index in chosen:
                table.record(slice_index, found[: scheme.neighbours])
        ranking = table.ranking()
        if scheme.late_interaction and ranking:
            ranking = rerank(slices.embeddings, ranking, self._slices_of, count=CANDIDATES)
        return Counter([ranking[0].volume_id if ranking else NOTHING])

    def _agreement(
        self,
        slices: IndexedSlices,
        hits: Mapping[Index, Sequence[Sequence[Hit]]],
        votes: Mapping[Index, Mapping[Scheme, Counter[str]]],
        neighbours: Mapping[Index, Neighbours],
    ) -> Iterator[tuple[object, ...]]:
        """Compare the first hits and the first match of every index with those of exact search."""
        by_votes = next(scheme for scheme in self._schemes if scheme.name == ALL)

        def cosine(row: int, hit: Hit) -> float:
            found = self._slices_of(hit.volume_id)
            vector = found.embeddings[bisect_left(found.indices, hit.slice_index)]
            return float(slices.embeddings[row].astype(np.float64) @ vector.astype(np.float64))

        nearest = {row: found[0] for row, found in enumerate(hits[Index.EXACT]) if found}
        for index, own in hits.items():
            first = {row: own[row][0] for row in nearest if own[row]}
            same = {row for row, hit in first.items() if hit[:3] == nearest[row][:3]}
            as_near = sum(
                row in same or cosine(row, hit) >= cosine(row, nearest[row]) - SAME_DISTANCE
                for row, hit in first.items()
            )
            exhaustive = len(nearest) if neighbours[index].exact else 0
            same_match = votes[index][by_votes] == votes[Index.EXACT][by_votes]
            yield index.name, len(nearest), as_near, len(same), exhaustive, 1, int(same_match)

    def _slices_of(self, volume_id: str) -> IndexedSlices:
        case, ordinal = self._volumes[volume_id]
        return self._store.load(case.key)[ordinal]


def _one_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Call a function on every item in another thread, which works on the next one while the caller uses the last."""
    remaining = iter(items)
    with ThreadPoolExecutor(1) as executor:

        def submit() -> list[Future[_Result]]:
            return [executor.submit(function, item) for item in itertools.islice(remaining, 1)]

        waiting = submit()
        while waiting:
            result = waiting.pop().result()
            waiting = submit()
            yield result
