"""The gRPC server: startup, health, and graceful shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from slicevote.contract import DEFAULT_PORT, MAX_MESSAGE_BYTES
from slicevote.v1 import archive_pb2, archive_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc

from slicevote_server.engine import Engine
from slicevote_server.errors import StartupError
from slicevote_server.service.archive_service import ArchiveService
from slicevote_server.service.conversation import Gate
from slicevote_server.service.interceptor import CallInterceptor
from slicevote_server.service.metrics import Metrics
from slicevote_server.service.metrics_server import MetricsServer
from slicevote_server.service.retrieval_service import RetrievalService
from slicevote_server.service.slice_stream import StreamTimeouts

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"

SERVICES = (
    retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name,
    archive_pb2.DESCRIPTOR.services_by_name["ArchiveService"].full_name,
)


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens.

    Attributes:
        address: HOST:PORT; port 0 takes a free one.
        max_streams: Searches and ingests at a time; more are turned away.
        max_message_bytes: Largest message; a slice must fit in.
        grace_s: How long calls may go on after the server was told to end.
        metrics_address: HOST:PORT that metrics are served on over HTTP; None for none.
        timeouts: How long a stream may be silent.
    """

    address: str = DEFAULT_ADDRESS
    max_streams: int = 32
    max_message_bytes: int = MAX_MESSAGE_BYTES
    grace_s: float = 20.0
    metrics_address: str | None = None
    timeouts: StreamTimeouts = field(default_factory=StreamTimeouts)


class Server:
    """A gRPC server over an engine.

    Args:
        engine: The engine; the server does not close it.
        settings: How it listens.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._engine = engine
        self._settings = settings
        # Every stream may have two batches under way, and the other calls want threads, too.
        self._executor = ThreadPoolExecutor(2 * settings.max_streams + 8, thread_name_prefix="call")
        self._metrics = Metrics(engine, max_streams=settings.max_streams)
        self._metrics_server: MetricsServer | None = None
        self.port = 0

    async def start(self) -> None:
        """Start listening.

        Raises:
            StartupError: The address cannot be listened on.
        """
        limit = self._settings.max_message_bytes
        self._server = grpc.aio.server(
            interceptors=(CallInterceptor(self._metrics),),
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                # A client that has vanished without a word is noticed and its place given to another.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients look, too, whether we are still there.
                ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
                # Two servers on one port would share its calls between two archives.
                ("grpc.so_reuseport", 0),
            ],
        )
        host = self._settings.address.rpartition(":")[0]
        try:
            self.port = self._server.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._settings.address}: the port is in use or the address is not this machine's; "
                "choose another with --listen HOST:PORT"
            ) from error
        self.address = f"{host}:{self.port}"
        gate, timeouts = Gate(self._settings.max_streams), self._settings.timeouts
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(
            RetrievalService(self._engine, self._executor, gate, self._metrics, timeouts), self._server
        )
        archive_pb2_grpc.add_ArchiveServiceServicer_to_server(
            ArchiveService(self._engine, self._executor, gate, self._metrics, timeouts, self.address), self._server
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()
        if self._settings.metrics_address is not None:
            try:
                self._metrics_server = MetricsServer(self._metrics.registry, self._settings.metrics_address)
            except StartupError:
                await self._server.stop(None)
                raise
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are served; None for nowhere."""
        return None if self._metrics_server is None else self._metrics_server.address

    async def stop(self) -> None:
        """Stop: refuse new calls, let those under way finish, then close everything."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.grace_s)
        # Not waited for: what is still in an archive comes back when the archive is closed.
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._metrics.close()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        await self.start()
        ended = asyncio.Event()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signal_number, ended.set)
        for served in self._engine.backbones:
            logger.info("backbone %s: %s", served.backbone.name, served.embedder.numerics)
        if self.metrics_address is not None:
            logger.info("metrics at http://%s/metrics", self.metrics_address)
            if not is_loopback(self.metrics_address):
                logger.warning("nothing guards %s: whoever reaches it can read the metrics", self.metrics_address)
        logger.info("listening on %s", self.address)
        if not is_loopback(self.address):
            logger.warning("nothing guards %s yet: whoever reaches it can search, add and delete", self.address)
        await ended.wait()
        logger.info("ending; calls under way have %.0f s", self._settings.grace_s)
        await self.stop()


def is_loopback(address: str) -> bool:
    """Return whether an address HOST:PORT can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
