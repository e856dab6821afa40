"""The HTTP server of the metrics, on a few threads of its own."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from slicevote_server.errors import StartupError

_IDLE_S = 10.0
_AT_A_TIME = 8
"""Connections; more are closed, so that whoever opens many takes nothing from the calls."""


class MetricsServer:
    """Serves a registry over HTTP.

    Args:
        registry: What it holds.
        address: HOST:PORT; port 0 takes a free one.

    Raises:
        StartupError: The address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            self._server = _HttpServer(place, family)
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {address} ({error.strerror}): the port is in use or the address is not this "
                "machine's; choose another with --metrics HOST:PORT"
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes are routine."""


class _HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, place: Any, family: socket.AddressFamily) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(_AT_A_TIME)
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        # Without the look-up of this machine's name that HTTPServer adds, which takes seconds where no DNS answers.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke off; nothing of it is worth a trace."""
