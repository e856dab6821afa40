"""Real servers on loopback ports: one in a thread of the tests, one as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from slicevote_server.engine import Engine, EngineSettings
from slicevote_server.service.server import Server, ServerSettings


class LocalServer:
    """A server in a thread of this process; its engine can be looked at."""

    def __init__(
        self,
        data: Path,
        backbones: Sequence[Path],
        settings: EngineSettings | None = None,
        listening: ServerSettings | None = None,
    ) -> None:
        self.engine = Engine(data, backbones, settings)
        self._listening = listening or ServerSettings(address="127.0.0.1:0", grace_s=1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._make(), self._loop).result(240)
        self.address = self._server.address
        self.metrics_address = self._server.metrics_address
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(240)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(240)
        self._loop.close()
        self.engine.close()

    async def _make(self) -> Server:
        server = Server(self.engine, self._listening)
        await server.start()
        return server


class ServerProcess:
    """`slicevote-server serve` as a process of its own, on a free port."""

    def __init__(self, data: Path, backbone: Path, *options: str) -> None:
        self._log = data.parent / f"server-{time.monotonic_ns()}.log"
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "slicevote-server"),
                    *("serve", "--data", str(data), "--backbone", str(backbone), "--listen", "127.0.0.1:0", *options),
                ],
                stderr=stream,
                start_new_session=True,
            )
        self.address = self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(240)

    @property
    def log(self) -> str:
        """What the server has logged."""
        return self._log.read_text()

    def kill(self) -> None:
        """Kills the server and its engine, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(240)

    def _wait(self) -> str:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            text = self.log
            if "listening on " in text:
                return text.split("listening on ")[1].split()[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log}")
