"""A search: one object from header to ranking.

`Search` takes slices and gives tallies; it knows neither gRPC nor files. Slices may come in any order and from several
threads. What the ranking shows is one state of the archive: before it is made, every hit on a volume that was replaced
or deleted since is looked up again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import MAX_HITS
from slicevote_volumes import Slice

from slicevote_server.archive.interface import EVERYTHING, Index, Scope, VolumeRecord
from slicevote_server.errors import ArchiveUnavailable, Cancelled, InvalidInput, NotReady
from slicevote_server.intake import Intake, StageTimes, VolumeHeader
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.reranking import rerank
from slicevote_server.sampling import AllSlices, SamplingScheme, plan
from slicevote_server.served_backbone import ServedBackbone, result_of, stack
from slicevote_server.voting import (
    Aggregation,
    Candidate,
    CountVotes,
    Hit,
    HitTable,
    SliceHit,
    is_decided,
    label_votes,
)

_LEADERS = 5
_SETTLING_ROUNDS = 8
_SETTLING_PAUSE_S = 0.01


@dataclass(frozen=True)
class LateInteraction:
    """Re-rank by late interaction.

    Attributes:
        candidates: How many volumes, the best by votes, are re-ranked.
        slab: First and last query slice that count; None for all.
    """

    candidates: int = 50
    slab: tuple[int, int] | None = None


@dataclass(frozen=True)
class SearchRequest:
    """What is searched, and how; fields as in the message SearchHeader."""

    volume: VolumeHeader
    index: Index = Index.HNSW
    sampling: SamplingScheme = field(default_factory=AllSlices)
    aggregation: Aggregation = field(default_factory=CountVotes)
    slice_wise: bool = False
    neighbours: int = 1
    top_k: int = 10
    scope: Scope = EVERYTHING
    late_interaction: LateInteraction | None = None
    stop_when_decided: bool = False
    slab: tuple[int, int] | None = None


@dataclass(frozen=True)
class Tally:
    """How the vote stands.

    Attributes:
        number: Counts the tallies of a search in the order in which they were made; later ones know more.
    """

    number: int
    planned_count: int
    received_count: int
    voting_count: int
    blank_count: int
    leaders: tuple[tuple[str, float], ...]
    decided: bool


@dataclass(frozen=True)
class Match:
    """A volume of the ranking, with its record."""

    record: VolumeRecord
    candidate: Candidate


@dataclass(frozen=True)
class Ranking:
    """The result of a search; fields as in the message of the same name."""

    matches: tuple[Match, ...]
    label_votes: Mapping[str, list[tuple[str, float]]]
    slice_hits: tuple[SliceHit, ...]
    records: Mapping[str, VolumeRecord]
    total_votes: float
    tally: Tally
    decided_early: bool
    voted_volume_count: int
    exact_because_filtered: bool
    times: StageTimes


class Search:
    """One search.

    Args:
        request: What is searched, and how.
        served: The backbone and its archive.
        policy: How grey values are made of pixels.

    Raises:
        InvalidInput: It could give more hits than an answer holds.
        NotReady: There is no such index.
    """

    def __init__(self, request: SearchRequest, served: ServedBackbone, policy: IntensityPolicy) -> None:
        if request.index is Index.LSH and served.lsh is None:
            raise NotReady("this server was started without the LSH index (--no-lsh)", reason="LSH_NOT_THERE")
        self._request = request
        self._served = served
        self.plan = plan(request.sampling, request.volume.positions_mm, request.slab)
        if len(self.plan) * request.neighbours > MAX_HITS:
            raise InvalidInput(
                f"{len(self.plan)} slices with {request.neighbours} neighbours each make more than {MAX_HITS} hits; "
                "sample fewer slices or ask for fewer neighbours",
                reason="TOO_MANY_HITS",
                field="header.neighbours",
            )
        self.intake = Intake(request.volume, self.plan, policy, thumbnails=False)
        self._lock = threading.Lock()
        self._table = HitTable(request.volume.slice_count, request.aggregation)
        self._embeddings: dict[int, NDArray[np.float32]] = {}
        self._unknown = set(self.plan)
        self._outstanding = self._exact_outstanding()
        self._futures: set[Future[NDArray[np.float32]]] = set()
        self._tally_count = 0
        self._exact = False
        self._ended = False

    def add(self, slices: Iterable[Slice]) -> Tally:
        """Takes planned slices: prepares, embeds and looks them up.

        Raises:
            InvalidInput: A slice cannot be used.
            ArchiveUnavailable: The archive's engine stopped; the search is lost.
            Cancelled: `cancel` was called.
        """
        prepared = self.intake.take(slices)
        visible = [entry for entry in prepared if entry.grey is not None]
        if visible:
            embeddings = self._embed(stack(visible))
            indices = [entry.index for entry in visible]
            found = self._look_up(embeddings)
            with self._lock:
                if self._ended:
                    raise Cancelled
                self._embeddings.update(zip(indices, embeddings, strict=True))
                for index, hits in zip(indices, found, strict=True):
                    self._table.record(index, hits)
        with self._lock:
            if self._ended:
                raise Cancelled
            for entry in prepared:
                self._unknown.discard(entry.index)
                self._outstanding -= self._most(entry.index)
        return self.tally()

    def tally(self) -> Tally:
        """Says how the vote stands."""
        with self._lock:
            self._tally_count += 1
            number = self._tally_count
            received, blank = self.intake.received_count, self.intake.blank_count
            votes = self._table.standing()
            voting = len(self._table)
            # Running sums are rounded; what they say is made sure of before anything hangs on it.
            decided = (
                self._can_be_decided()
                and is_decided(votes, self._outstanding)
                and is_decided(self._table.votes(), self._exact_outstanding())
            )
        leaders = sorted(votes.items(), key=lambda entry: (-entry[1], entry[0]))[:_LEADERS]
        return Tally(
            number=number,
            planned_count=len(self.plan),
            received_count=received,
            voting_count=voting,
            blank_count=blank,
            leaders=tuple(leaders),
            decided=decided,
        )

    def finish(self, *, early: bool = False) -> Ranking:
        """Makes the ranking.

        Args:
            early: The search ends although planned slices are missing.

        Raises:
            InvalidInput: Planned slices are missing.
            ArchiveUnavailable: The archive's engine stopped, or changes faster than it can be read.
        """
        if not early:
            self.intake.require_complete()
        records = self._settle()
        candidates = self._table.ranking()
        if self._request.late_interaction is not None:
            candidates = self._rerank(candidates, records, self._request.late_interaction)
        shown = () if self._request.slice_wise else candidates[: self._request.top_k]
        return Ranking(
            matches=tuple(Match(records[candidate.volume_id], candidate) for candidate in shown),
            label_votes=label_votes(candidates, lambda volume_id: records[volume_id].labels),
            slice_hits=self._table.slice_hits() if self._request.slice_wise else (),
            records=records,
            total_votes=sum(candidate.votes for candidate in candidates),
            tally=self.tally(),
            decided_early=early,
            voted_volume_count=len(candidates),
            exact_because_filtered=self._exact and self._request.index is not Index.EXACT,
            times=self.intake.finish(),
        )

    def cancel(self) -> None:
        """Takes no more votes, and drops what has been asked of the backbone and is not computed yet.

        What is under way on another thread ends with `Cancelled`; `finish` may be called.
        """
        with self._lock:
            self._ended = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def _embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        started = time.perf_counter()
        future = self._served.embedder.submit(slices)
        with self._lock:
            self._futures.add(future)
        try:
            return result_of(future)
        finally:
            with self._lock:
                self._futures.discard(future)
            self.intake.embedded(time.perf_counter() - started)

    def _look_up(self, embeddings: NDArray[np.float32]) -> list[list[Hit]]:
        started = time.perf_counter()
        found = self._served.nearest(
            embeddings,
            index=self._request.index,
            neighbours=self._request.neighbours,
            scope=self._request.scope,
        )
        self.intake.searched(time.perf_counter() - started)
        self._exact = self._exact or found.exact
        return found.hits

    def _most(self, index: int) -> float:
        """Gives the most that one slice can give to one volume: all its hits."""
        return self._request.neighbours * self._request.aggregation.weight(index, self._request.volume.slice_count)

    def _exact_outstanding(self) -> float:
        """Gives the most that one volume can still get: every hit of every slice whose hits are not known yet."""
        return math.fsum(map(self._most, self._unknown))

    def _can_be_decided(self) -> bool:
        return not self._request.slice_wise and self._request.late_interaction is None

    def _settle(self) -> dict[str, VolumeRecord]:
        """Looks up again what hit a volume that has been replaced or deleted since, until nothing has."""
        for attempt in range(_SETTLING_ROUNDS):
            # A volume that is being replaced at this moment needs one, too.
            time.sleep(attempt * _SETTLING_PAUSE_S)
            volume_ids = {hit.volume_id for hits in self._table.hits().values() for hit in hits}
            records = self._served.archive.records(volume_ids)
            stale = [
                index
                for index, hits in self._table.hits().items()
                if any(hit.volume_id not in records or records[hit.volume_id].revision != hit.revision for hit in hits)
            ]
            if not stale:
                return records
            found = self._look_up(np.stack([self._embeddings[index] for index in stale]))
            for index, hits in zip(stale, found, strict=True):
                self._table.record(index, hits)
        raise ArchiveUnavailable("the archive changes faster than the search can read it; try again")

    def _rerank(
        self, candidates: list[Candidate], records: Mapping[str, VolumeRecord], wanted: LateInteraction
    ) -> list[Candidate]:
        """Orders the best volumes by late interaction; the others follow in their order."""
        first, last = wanted.slab or (0, self._request.volume.slice_count - 1)
        rows = [self._embeddings[index] for index in sorted(self._embeddings) if first <= index <= last]
        if not rows:
            return candidates
        started = time.perf_counter()
        ordered = rerank(
            np.stack(rows),
            candidates,
            lambda volume_id: self._served.archive.slices(records[volume_id]),
            count=wanted.candidates,
        )
        self.intake.searched(time.perf_counter() - started)
        return ordered
