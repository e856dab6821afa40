"""Prometheus metrics of the server.

Labels are names of methods, codes, stages and backbones only: nothing of a volume gets in here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from slicevote.v1 import archive_pb2, retrieval_pb2

from slicevote_server import __version__
from slicevote_server.archive.interface import Occupancy
from slicevote_server.engine import Engine
from slicevote_server.runtime import Numerics
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.service.call import Call
from slicevote_server.stage_clock import StageTimes

logger = logging.getLogger(__name__)

_STREAMS = ("Search", "IngestVolume")
_METHODS = tuple(
    method.name
    for file in (retrieval_pb2.DESCRIPTOR, archive_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
)

OUTCOMES = (
    "OK",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
)
"""How calls end, by the names of gRPC's codes."""

_BY_BACKBONE = ("backbone",)

_CALL_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)

_ANSWER_S = 2.0
"""How long a scrape waits for an archive, which may be building its graph."""


class Metrics:
    """Counts the calls of a server, and reads the engine's state at every scrape.

    Args:
        engine: The engine.
        max_streams: Searches and ingests that the server takes at a time.
    """

    def __init__(self, engine: Engine, *, max_streams: int) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter("slicevote_calls", "Calls that have ended.", ["method", "code"], registry=self.registry)
        self._seconds = Histogram(
            "slicevote_call_seconds",
            "Time from a call's start to its end, the client's pauses included.",
            ["method"],
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._open = Gauge("slicevote_open_calls", "Calls under way.", ["method"], registry=self.registry)
        limit = Gauge("slicevote_stream_limit", "Searches and ingests taken at a time.", registry=self.registry)
        limit.set(max_streams)
        self._slices = Counter(
            "slicevote_slices",
            "Slices of finished searches and ingests; blank ones neither vote nor are indexed.",
            ["method", "outcome"],
            registry=self.registry,
        )
        self._stages = Counter(
            "slicevote_stage_seconds",
            "Time of finished searches and ingests by stage; stages that ran at the same moment share it.",
            ["method", "stage"],
            registry=self.registry,
        )
        self._early = Counter(
            "slicevote_searches_decided_early", "Searches that ended before their plan did.", registry=self.registry
        )
        self._engine = _EngineCollector(engine)
        self.registry.register(self._engine)
        ProcessCollector(registry=self.registry)
        # What has not happened yet is a zero, not a gap: rates and alerts need both ends.
        for method in _METHODS:
            for code in OUTCOMES:
                self._calls.labels(method, code)
            self._seconds.labels(method)
            self._open.labels(method)
        for method in _STREAMS:
            self.count_finished(method, used=0, blank=0, times=StageTimes(0.0, 0.0, 0.0, 0.0, 0.0))

    @contextlib.contextmanager
    def call(self, call: Call) -> Iterator[None]:
        """Count a call; its code says how it ended."""
        with self._open.labels(call.method).track_inprogress(), self._seconds.labels(call.method).time():
            try:
                yield
            finally:
                self._calls.labels(call.method, call.code).inc()

    def count_finished(self, method: str, *, used: int, blank: int, times: StageTimes) -> None:
        """Count the slices of a finished search or ingest, and where its time went."""
        self._slices.labels(method, "used").inc(used)
        self._slices.labels(method, "blank").inc(blank)
        self._stages.labels(method, "decoding").inc(times.decoding_s)
        self._stages.labels(method, "embedding").inc(times.embedding_s)
        self._stages.labels(method, "searching").inc(times.searching_s)
        self._stages.labels(method, "waiting").inc(times.waiting_s)

    def decided_early(self) -> None:
        """Count a search that ended before its plan did."""
        self._early.inc()

    def close(self) -> None:
        """Stop asking the engine."""
        self._engine.close()


@dataclass(frozen=True)
class _Survey:
    """What an archive says of itself."""

    occupancy: Occupancy
    numerics: Numerics | None
    fingerprint: int


class _EngineCollector(Collector):
    """Reads the engine's state at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._backbones = engine.backbones
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(len(self._backbones), thread_name_prefix="metrics")
        self._surveys: dict[str, Future[_Survey]] = {}
        self._closed = False

    def describe(self) -> Iterator[Metric]:
        yield _server_family()
        yield from _embedder_families(())
        yield from _archive_families(())

    def collect(self) -> Iterator[Metric]:
        yield _server_family()
        yield from _embedder_families(self._backbones)
        yield from _archive_families(self._ask())

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> list[tuple[ServedBackbone, _Survey | None]]:
        """Ask all archives at once. One that has not answered the last scrape yet is not asked again."""
        with self._lock:
            if self._closed:
                return [(served, None) for served in self._backbones]
            for served in self._backbones:
                asked = self._surveys.get(served.backbone.name)
                if asked is None or asked.done():
                    self._surveys[served.backbone.name] = self._executor.submit(_survey, served)
            surveys = [(served, self._surveys[served.backbone.name]) for served in self._backbones]
        wait([survey for _, survey in surveys], _ANSWER_S)
        return [(served, _answer(survey)) for served, survey in surveys]


def _survey(served: ServedBackbone) -> _Survey:
    archive = served.archive
    return _Survey(archive.occupancy(), archive.provenance().numerics, archive.fingerprint())


def _answer(survey: Future[_Survey]) -> _Survey | None:
    if not survey.done() or survey.cancelled():
        return None
    error = survey.exception()
    if error is not None:
        # Its kind and not its words, which might hold anything.
        logger.warning("an archive could not be asked how it is: %s", type(error).__name__)
        return None
    return survey.result()


def _server_family() -> Metric:
    return InfoMetricFamily("slicevote_server", "The server.", {"version": __version__})


def _embedder_families(backbones: Iterable[ServedBackbone]) -> Iterator[Metric]:
    runs_on = InfoMetricFamily("slicevote_backbone", "What a backbone runs on.", labels=_BY_BACKBONE)
    slices = CounterMetricFamily("slicevote_embedded_slices", "Slices embedded.", labels=_BY_BACKBONE)
    batches = CounterMetricFamily("slicevote_embedded_batches", "Batches embedded.", labels=_BY_BACKBONE)
    busy = CounterMetricFamily("slicevote_embedder_busy_seconds", "Time spent embedding.", labels=_BY_BACKBONE)
    waiting = GaugeMetricFamily(
        "slicevote_embedder_waiting_slices", "Slices that wait for a backbone.", labels=_BY_BACKBONE
    )
    for served in backbones:
        name, load = [served.backbone.name], served.embedder.load()
        runs_on.add_metric(name, served.embedder.numerics.as_mapping())
        slices.add_metric(name, load.slice_count)
        batches.add_metric(name, load.batch_count)
        busy.add_metric(name, load.busy_s)
        waiting.add_metric(name, load.waiting_slice_count)
    yield from (runs_on, slices, batches, busy, waiting)


def _archive_families(answers: Iterable[tuple[ServedBackbone, _Survey | None]]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "slicevote_archive_up",
        f"The archive has answered within {_ANSWER_S:.0f} s; where not, what it would have said is left out.",
        labels=_BY_BACKBONE,
    )
    restarts = CounterMetricFamily(
        "slicevote_archive_engine_restarts", "Restarts of the archive's engine.", labels=_BY_BACKBONE
    )
    made_with = InfoMetricFamily("slicevote_archive", "What an archive's vectors were made with.", labels=_BY_BACKBONE)
    differ = GaugeMetricFamily(
        "slicevote_numerics_differ", "The server embeds otherwise than the archive was made.", labels=_BY_BACKBONE
    )
    volumes = GaugeMetricFamily("slicevote_archive_volumes", "Volumes in the archive.", labels=_BY_BACKBONE)
    slices = GaugeMetricFamily("slicevote_archive_slices", "Slices in the archive.", labels=_BY_BACKBONE)
    unindexed = GaugeMetricFamily(
        "slicevote_archive_unindexed_slices", "Slices that the graph does not hold yet.", labels=_BY_BACKBONE
    )
    disk = GaugeMetricFamily("slicevote_archive_disk_bytes", "The archive's space on disk.", labels=_BY_BACKBONE)
    lsh = GaugeMetricFamily("slicevote_lsh_ready", "The LSH index is in step with the archive.", labels=_BY_BACKBONE)
    for served, survey in answers:
        name = [served.backbone.name]
        up.add_metric(name, survey is not None)
        restarts.add_metric(name, served.archive.restart_count)
        if survey is None:
            continue
        if survey.numerics is not None:
            made_with.add_metric(name, survey.numerics.as_mapping())
            differ.add_metric(name, survey.numerics != served.embedder.numerics)
        volumes.add_metric(name, survey.occupancy.volume_count)
        slices.add_metric(name, survey.occupancy.slice_count)
        unindexed.add_metric(name, survey.occupancy.unindexed_slice_count)
        disk.add_metric(name, survey.occupancy.disk_bytes)
        if served.lsh is not None:
            lsh.add_metric(name, served.lsh.fingerprint == survey.fingerprint)
    yield from (up, restarts, made_with, differ, volumes, slices, unindexed, disk, lsh)
