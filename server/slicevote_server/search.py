"""A search, from header to ranking.

`Search` takes slices and returns tallies; it knows neither gRPC nor files. Slices may arrive in any order and from
several threads. A ranking shows one state of the archive: before it is made, every hit on a volume that has been
replaced or deleted since is looked up again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import MAX_HITS
from slicevote_volumes import Slice

from slicevote_server.archive.interface import EVERYTHING, Index, Scope, VolumeRecord
from slicevote_server.errors import ArchiveUnavailable, InvalidInput, NotReady
from slicevote_server.intake import Intake, VolumeHeader
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.reranking import rerank
from slicevote_server.sampling import AllSlices, SamplingScheme, plan
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.session import Session
from slicevote_server.stage_clock import Stage, StageTimes
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
    patient_secret_fingerprint: str = ""


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
    patient_secret_differs: bool
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
        planned = plan(request.sampling, request.volume.positions_mm, request.slab)
        if len(planned) * request.neighbours > MAX_HITS:
            raise InvalidInput(
                f"{len(planned)} slices with {request.neighbours} neighbours each make more than {MAX_HITS} hits; "
                "sample fewer slices or ask for fewer neighbours",
                reason="TOO_MANY_HITS",
                field="header.neighbours",
            )
        self._intake = Intake(request.volume, planned, policy, thumbnails=False)
        self.session = Session(self._intake, [served.embedder])
        self._lock = threading.Lock()
        self._table = HitTable(request.volume.slice_count, request.aggregation)
        self._embeddings: dict[int, NDArray[np.float32]] = {}
        self._unknown = set(planned)
        self._outstanding = self._exact_outstanding()
        self._tally_count = 0
        self._exact = False

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self._served.backbone.name

    @property
    def plan(self) -> tuple[int, ...]:
        """Indices of the slices that are wanted, in the order in which they are wanted."""
        return self._intake.plan

    def add(self, slices: Iterable[Slice]) -> Tally:
        """Prepare, embed and look up planned slices.

        Raises:
            InvalidInput: A slice cannot be used.
            ArchiveUnavailable: The archive's engine stopped; the search is lost.
            Cancelled: The session was cancelled.
        """
        embedded = self.session.take(slices)
        if embedded.visible:
            (embeddings,) = embedded.embeddings
            indices = [entry.index for entry in embedded.visible]
            found = self._look_up(embeddings)
            with self.session.open(), self._lock:
                self._embeddings.update(zip(indices, embeddings, strict=True))
                for index, hits in zip(indices, found, strict=True):
                    self._table.record(index, hits)
        with self.session.open(), self._lock:
            for entry in embedded.prepared:
                self._unknown.discard(entry.index)
                self._outstanding -= self._most(entry.index)
        return self.tally()

    def tally(self) -> Tally:
        """Return how the vote stands."""
        with self._lock:
            self._tally_count += 1
            number = self._tally_count
            received, blank = self._intake.received_count, self._intake.blank_count
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
        """Return the ranking.

        Args:
            early: The search ends although planned slices are missing.

        Raises:
            InvalidInput: Planned slices are missing.
            ArchiveUnavailable: The archive's engine stopped, or changes faster than it can be read.
        """
        if not early:
            self._intake.require_complete()
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
            patient_secret_differs=self._patient_secret_differs(),
            times=self.session.clock.times(),
        )

    def _look_up(self, embeddings: NDArray[np.float32]) -> list[list[Hit]]:
        with self.session.clock.running(Stage.SEARCHING):
            found = self._served.nearest(
                embeddings,
                index=self._request.index,
                neighbours=self._request.neighbours,
                scope=self._request.scope,
            )
        self._exact = self._exact or found.exact
        return found.hits

    def _most(self, index: int) -> float:
        """Return the most that one slice can vote for one volume: all its hits."""
        return self._request.neighbours * self._request.aggregation.weight(index, self._request.volume.slice_count)

    def _exact_outstanding(self) -> float:
        """Return the most that one volume can still get: every hit of every slice whose hits are not known yet."""
        return math.fsum(map(self._most, self._unknown))

    def _patient_secret_differs(self) -> bool:
        """Return whether the excluded patients' keys cannot match any of the archive's."""
        given = self._request.patient_secret_fingerprint
        if not (given and self._request.scope.exclude_patient_keys):
            return False
        kept = self._served.archive.provenance().patient_secret_fingerprint
        return bool(kept) and kept != given

    def _can_be_decided(self) -> bool:
        return not self._request.slice_wise and self._request.late_interaction is None

    def _settle(self) -> dict[str, VolumeRecord]:
        """Repeat the lookups that hit a volume replaced or deleted since, until there are none."""
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
        """Order the best volumes by late interaction; the others follow in their order."""
        first, last = wanted.slab or (0, self._request.volume.slice_count - 1)
        rows = [self._embeddings[index] for index in sorted(self._embeddings) if first <= index <= last]
        if not rows:
            return candidates
        with self.session.clock.running(Stage.SEARCHING):
            return rerank(
                np.stack(rows),
                candidates,
                lambda volume_id: self._served.archive.slices(records[volume_id]),
                count=wanted.candidates,
            )
