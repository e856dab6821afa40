"""Looks up every query once and lets every column vote, a few sources at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import Index
from slicevote_server.evaluation.database import source_names, volume_name
from slicevote_server.evaluation.datasets import Dataset, Source
from slicevote_server.evaluation.hits import HitTables, Query
from slicevote_server.evaluation.outcomes import Outcomes, QueryVolume, agree, candidates, interact, vote
from slicevote_server.evaluation.progress import Reporter
from slicevote_server.evaluation.schemes import ALL, Scheme
from slicevote_server.evaluation.store import Embedded, EmbeddingStore, Found, VolumeSlices
from slicevote_server.evaluation.timing import Times

EXACT = Index.EXACT.name

_QUERY_SLICES = 1024
_CACHE_BYTES = 256 << 20


def vote_all(
    dataset: Dataset,
    volumes: Mapping[str, tuple[VolumeSlices, ...]],
    store: EmbeddingStore,
    tables: Sequence[HitTables],
    schemes: Sequence[Scheme],
    outcomes: Outcomes,
    times: Times,
    reporter: Reporter,
    title: str,
) -> None:
    """Looks every query slice up once in every index, and lets all columns vote.

    Args:
        dataset: What is evaluated.
        volumes: The volumes of every source that could be read, by its name.
        store: Their embeddings.
        tables: The indexes.
        schemes: The columns.
        outcomes: Where what is found is counted.
        times: Where the time is written down.
        reporter: Is told how far it is.
        title: What it is told.
    """
    readable = [source for source in dataset.sources if source.name in volumes]
    places = source_names(readable, volumes)
    labels_of = {
        volume: tuple(source.labels[level] for level in dataset.levels) for volume, (source, _) in places.items()
    }
    vectors = _Vectors(store, places)
    excluded = _exclusions(readable, volumes) if dataset.leave_one_patient_out else {}
    queries = sorted((source for source in readable if source.is_query), key=lambda source: source.patient)
    total = sum(len(volume.indices) for source in queries for volume in volumes[source.name])
    with reporter.stage(title, total, "slices") as stage:
        groups = _groups(queries, volumes, together=not dataset.leave_one_patient_out)
        for group, found in _search_ahead(groups, tables, vectors, excluded):
            with times.stage("voting"):
                for place, source in enumerate(group):
                    labels = tuple(source.labels[level] for level in dataset.levels)
                    entries = {table: rows[place] for table, rows in found.items()}
                    _vote_source(source, entries, vectors, schemes, labels_of, labels, outcomes)
                    stage.advance(sum(len(volume.indices) for volume in volumes[source.name]))


class _Vectors:
    """Reads sources' vectors from the store and keeps those read last."""

    def __init__(self, store: EmbeddingStore, places: Mapping[str, tuple[Source, int]]) -> None:
        self._store = store
        self._places = places
        self._kept: OrderedDict[str, Embedded] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def volume(self, name: str) -> tuple[VolumeSlices, NDArray[np.float32]]:
        """Gives a volume and its embeddings."""
        source, ordinal = self._places[name]
        embedded = self.source(source.key)
        return embedded.volumes[ordinal], embedded.embeddings[embedded.rows(ordinal)]

    def source(self, key: str) -> Embedded:
        """Gives a source; may be called from several threads."""
        with self._lock:
            embedded = self._kept.pop(key, None)
            if embedded is None:
                embedded = self._store.load(key)
                self._bytes += embedded.embeddings.nbytes
            self._kept[key] = embedded
            while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.embeddings.nbytes
            return embedded


def _search_ahead(
    groups: Iterable[list[Source]],
    tables: Sequence[HitTables],
    vectors: _Vectors,
    excluded: Mapping[str, frozenset[str]],
) -> Iterator[tuple[list[Source], dict[HitTables, list[Found]]]]:
    """Looks up one group while the one before it votes."""

    def asked(group: Sequence[Source]) -> list[Query]:
        return [
            Query(source.key, vectors.source(source.key).embeddings, excluded.get(source.patient, frozenset()))
            for source in group
        ]

    def search(lane: Sequence[HitTables], queries: Sequence[Query]) -> dict[HitTables, list[Found]]:
        found: dict[HitTables, list[Found]] = {}
        for table in lane:
            # Where much is excluded, HNSW, which is before it, has compared exhaustively itself; once is enough.
            before = next(iter(found.values()), [])
            found[table] = table.find(queries, [entry if entry.exhaustive else None for entry in before])
        return found

    # The archive searches in a process of its own, one call at a time; the LSH index searches in this one.
    lanes = [
        sorted((table for table in tables if table.index != Index.LSH.name), key=lambda table: table.index == EXACT),
        [table for table in tables if table.index == Index.LSH.name],
    ]
    with ThreadPoolExecutor(len(lanes), thread_name_prefix="search") as searchers:
        waiting: deque[tuple[list[Source], list[Future[dict[HitTables, list[Found]]]]]] = deque()

        def next_found() -> tuple[list[Source], dict[HitTables, list[Found]]]:
            group, futures = waiting.popleft()
            return group, {table: found for future in futures for table, found in future.result().items()}

        for group in groups:
            queries = asked(group)
            waiting.append((group, [searchers.submit(search, lane, queries) for lane in lanes]))
            if len(waiting) > 1:
                yield next_found()
        while waiting:
            yield next_found()


def _vote_source(
    source: Source,
    found: Mapping[HitTables, Found],
    vectors: _Vectors,
    schemes: Sequence[Scheme],
    labels_of: Mapping[str, tuple[str, ...]],
    labels: tuple[str, ...],
    outcomes: Outcomes,
) -> None:
    embedded = vectors.source(source.key)
    for ordinal, slices in enumerate(embedded.volumes):
        rows = embedded.rows(ordinal)
        query = QueryVolume(slices, embedded.embeddings[rows], labels, Fraction(1, len(embedded.volumes)))
        tables = {table.index: table.hits(entry, rows, slices.indices) for table, entry in found.items()}
        first_hit = {hits[0].volume_id for table in tables.values() for hits in table.values() if hits}
        met = {name: vectors.volume(name) for name in sorted(first_hit)}
        by_votes = next(scheme for scheme in schemes if scheme.name == ALL)
        scores = interact(query, {name: met[name] for name in candidates(query, tables, by_votes)})
        first = vote(query, tables, schemes, scores, labels_of, outcomes)
        if EXACT in tables:
            exhaustive = {table.index: entry.exhaustive for table, entry in found.items()}
            agree(query, tables, EXACT, met, exhaustive, first, outcomes)


def _groups(
    queries: Sequence[Source], volumes: Mapping[str, Sequence[VolumeSlices]], *, together: bool
) -> Iterator[list[Source]]:
    """Puts queries together that are looked up at once: many slices, or those of one patient."""
    group: list[Source] = []
    slices = 0
    for source in queries:
        if group and (slices >= _QUERY_SLICES or not (together or group[-1].patient == source.patient)):
            yield group
            group, slices = [], 0
        group.append(source)
        slices += sum(len(volume.indices) for volume in volumes[source.name])
    if group:
        yield group


def _exclusions(sources: Sequence[Source], volumes: Mapping[str, Sequence[VolumeSlices]]) -> dict[str, frozenset[str]]:
    """Gives the volumes of every patient."""
    names: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        count = len(volumes[source.name])
        names[source.patient].update(volume_name(source, ordinal, count) for ordinal in range(count))
    return {patient: frozenset(own) for patient, own in names.items()}
