"""What the server counts, in Prometheus' text format over HTTP.

Labels are names of methods, codes, stages and backbones, and nothing else: nothing of a volume gets in here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from slicevote_server import __version__
from slicevote_server.archive.interface import Occupancy
from slicevote_server.engine import Engine
from slicevote_server.errors import ArchiveUnavailable, StartupError
from slicevote_server.holding import Holding
from slicevote_server.intake import StageTimes
from slicevote_server.runtime import Numerics

_STREAMS = ("Search", "IngestVolume")
_METHODS = (*_STREAMS, "GetVolume", "ListVolumes", "DeleteVolume", "GetArchive")

_CALL_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)

_ANSWER_S = 2.0
"""How long a scrape waits for an archive, which may be building its graph."""


class Metrics:
    """Counts the calls of a server, and asks its engine how it is whenever somebody looks.

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
            "Time of finished searches and ingests by stage, summed over slices; stages overlap.",
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
            self._calls.labels(method, "OK")
            self._seconds.labels(method)
            self._open.labels(method)
        for method in _STREAMS:
            self.worked(method, used=0, blank=0, times=StageTimes())

    @contextlib.contextmanager
    def call(self, method: str) -> Iterator[CallOutcome]:
        """Counts a call; whoever makes it writes down how it ended."""
        outcome = CallOutcome()
        with self._open.labels(method).track_inprogress(), self._seconds.labels(method).time():
            try:
                yield outcome
            finally:
                self._calls.labels(method, outcome.code).inc()

    def worked(self, method: str, *, used: int, blank: int, times: StageTimes) -> None:
        """Counts the slices of a search or an ingest that has been carried out, and where its time went."""
        self._slices.labels(method, "used").inc(used)
        self._slices.labels(method, "blank").inc(blank)
        self._stages.labels(method, "decoding").inc(times.decoding_s)
        self._stages.labels(method, "embedding").inc(times.embedding_s)
        self._stages.labels(method, "searching").inc(times.searching_s)
        self._stages.labels(method, "waiting").inc(times.waiting_s)

    def decided_early(self) -> None:
        """Counts a search that ended before its plan did."""
        self._early.inc()

    def close(self) -> None:
        """Asks the engine nothing more."""
        self._engine.close()


@dataclass
class CallOutcome:
    """How a call ended, by the name of its gRPC code."""

    code: str = "OK"


class MetricsServer:
    """Serves metrics over HTTP.

    Args:
        metrics: What it serves.
        address: HOST:PORT; port 0 takes a free one.

    Raises:
        StartupError: The address cannot be listened on.
    """

    def __init__(self, metrics: Metrics, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._server: WSGIServer
            self._thread: threading.Thread
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {address} ({error.strerror}): the port is in use or the address is not this "
                "machine's; choose another with --metrics HOST:PORT"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True)
class _Survey:
    """What an archive says of itself."""

    occupancy: Occupancy
    numerics: Numerics | None
    lsh_ready: bool | None


class _EngineCollector(Collector):
    """Asks the engine for its state at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._holdings = engine.holdings
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(len(self._holdings), thread_name_prefix="metrics")
        self._surveys: dict[str, Future[_Survey]] = {}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        # So that registering asks nobody anything.
        return ()

    def collect(self) -> Iterator[InfoMetricFamily | GaugeMetricFamily | CounterMetricFamily]:
        yield InfoMetricFamily("slicevote_server", "The server.", {"version": __version__})
        yield from self._embedders()
        yield from self._archives()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _embedders(self) -> Iterator[InfoMetricFamily | GaugeMetricFamily | CounterMetricFamily]:
        backbones = InfoMetricFamily("slicevote_backbone", "What a backbone runs on.", labels=["backbone"])
        slices = CounterMetricFamily("slicevote_embedded_slices", "Slices embedded.", labels=["backbone"])
        batches = CounterMetricFamily("slicevote_embedded_batches", "Batches embedded.", labels=["backbone"])
        busy = CounterMetricFamily("slicevote_embedder_busy_seconds", "Time spent embedding.", labels=["backbone"])
        waiting = GaugeMetricFamily(
            "slicevote_embedder_waiting_slices", "Slices that wait for a backbone.", labels=["backbone"]
        )
        for holding in self._holdings:
            name, load = [holding.backbone.name], holding.embedder.load()
            backbones.add_metric(name, holding.embedder.numerics.as_mapping())
            slices.add_metric(name, load.slice_count)
            batches.add_metric(name, load.batch_count)
            busy.add_metric(name, load.busy_s)
            waiting.add_metric(name, load.waiting_slice_count)
        yield from (backbones, slices, batches, busy, waiting)

    def _archives(self) -> Iterator[InfoMetricFamily | GaugeMetricFamily | CounterMetricFamily]:
        up = GaugeMetricFamily(
            "slicevote_archive_up",
            f"The archive has answered within {_ANSWER_S:.0f} s; where not, its sizes are left out.",
            labels=["backbone"],
        )
        made_with = InfoMetricFamily(
            "slicevote_archive", "What an archive's vectors were made with.", labels=["backbone"]
        )
        differ = GaugeMetricFamily(
            "slicevote_numerics_differ", "The server embeds otherwise than the archive was made.", labels=["backbone"]
        )
        volumes = GaugeMetricFamily("slicevote_archive_volumes", "Volumes in the archive.", labels=["backbone"])
        slices = GaugeMetricFamily("slicevote_archive_slices", "Slices in the archive.", labels=["backbone"])
        unindexed = GaugeMetricFamily(
            "slicevote_archive_unindexed_slices", "Slices that the graph does not hold yet.", labels=["backbone"]
        )
        disk = GaugeMetricFamily("slicevote_archive_disk_bytes", "The archive's space on disk.", labels=["backbone"])
        lsh = GaugeMetricFamily(
            "slicevote_lsh_ready", "The LSH index is in step with the archive.", labels=["backbone"]
        )
        restarts = CounterMetricFamily(
            "slicevote_archive_engine_restarts", "Restarts of the archive's engine.", labels=["backbone"]
        )
        for holding, survey in self._ask():
            name = [holding.backbone.name]
            up.add_metric(name, survey is not None)
            restarts.add_metric(name, holding.archive.restart_count)
            if survey is None:
                continue
            if survey.numerics is not None:
                made_with.add_metric(name, survey.numerics.as_mapping())
                differ.add_metric(name, survey.numerics != holding.embedder.numerics)
            volumes.add_metric(name, survey.occupancy.volume_count)
            slices.add_metric(name, survey.occupancy.slice_count)
            unindexed.add_metric(name, survey.occupancy.unindexed_slice_count)
            disk.add_metric(name, survey.occupancy.disk_bytes)
            if survey.lsh_ready is not None:
                lsh.add_metric(name, survey.lsh_ready)
        yield from (up, made_with, differ, volumes, slices, unindexed, disk, lsh, restarts)

    def _ask(self) -> list[tuple[Holding, _Survey | None]]:
        """Asks all archives at once. One that is still at the last question is not asked again."""
        with self._lock:
            for holding in self._holdings:
                asked = self._surveys.get(holding.backbone.name)
                if asked is None or asked.done():
                    self._surveys[holding.backbone.name] = self._executor.submit(_survey, holding)
            surveys = dict(self._surveys)
        answers: list[tuple[Holding, _Survey | None]] = []
        for holding in self._holdings:
            try:
                answers.append((holding, surveys[holding.backbone.name].result(_ANSWER_S)))
            except (TimeoutError, ArchiveUnavailable):
                answers.append((holding, None))
        return answers


def _survey(holding: Holding) -> _Survey:
    return _Survey(
        occupancy=holding.archive.occupancy(),
        numerics=holding.archive.numerics(),
        lsh_ready=None if holding.lsh is None else holding.lsh.is_in_step(),
    )
