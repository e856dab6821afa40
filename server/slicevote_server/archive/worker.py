"""A process of its own for an engine that holds the interpreter lock.

`Worker` starts the process, sends it calls one at a time, and starts it again where it died. A call that was under way
then fails as `ArchiveUnavailable`; what had been acknowledged is on the disk and is there again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.util
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from slicevote_server.errors import ArchiveUnavailable, EngineError, StartupError

logger = logging.getLogger(__name__)

# Never fork: threads and locks of gRPC would be copied in the state they happen to be in.
_SPAWN = multiprocessing.get_context("spawn")

WRITES = frozenset({"put", "delete", "record_numerics"})
"""Methods after whose failure the store is opened anew."""

_IDLE_S = 0.5
_CLOSE_S = 20.0
"""How long a store may take to end, or to come out of what it is doing; then it is killed, which loses nothing."""


class Store(Protocol):
    """What runs in the process: an object whose methods are called by name."""

    def wants_optimizing(self, *, idle: bool) -> bool:
        """Tells whether `optimize` should run now."""
        ...

    def optimize(self) -> None:
        """Does work that nobody waits for."""
        ...

    def close(self) -> None:
        """Leaves everything on the disk."""
        ...


class Worker:
    """Calls a store that lives in another process.

    Args:
        factory: Makes the store, inside the process; must be picklable.
        name: What the process is called in logs.

    Raises:
        StartupError: The store could not be made.
    """

    def __init__(self, factory: Callable[[], Store], *, name: str) -> None:
        self._factory = factory
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self.restart_count = 0
        self._start()

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    def call(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Calls a method of the store and gives what it returns.

        Raises:
            ArchiveUnavailable: The process died; it has been started again, or will be at the next call.
        """
        with self._lock:
            if self._closed:
                raise ArchiveUnavailable("the archive is closed")
            if not self._process.is_alive():
                self._restart()
            try:
                self._connection.send((method, args, keywords))
                succeeded, value = self._connection.recv()
            except (EOFError, OSError) as error:
                logger.error("the process of %s died in a call of %s", self._name, method)
                if self._closed:
                    raise ArchiveUnavailable("the archive is closed") from error
                with contextlib.suppress(ArchiveUnavailable):
                    self._restart()
                raise ArchiveUnavailable(
                    "the archive's engine stopped and was restarted; nothing that was acknowledged is lost, try again"
                ) from error
            except BaseException:
                # An interrupt in between: the answer that is still to come belongs to nobody.
                self._process.kill()
                raise
            if not succeeded and method in WRITES and not isinstance(value, (EngineError, ValueError)):
                # Nobody knows how much of a write that failed is there; a store that is opened anew does.
                logger.error("a %s failed in the process of %s; it is started anew", method, self._name)
                with contextlib.suppress(ArchiveUnavailable):
                    self._restart()
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """Closes the store and ends the process."""
        self._closed = True
        if not self._lock.acquire(timeout=_CLOSE_S):
            # In the middle of a long call, as building the graph; whoever made it sees the process die.
            logger.warning("the process of %s is busy and is killed", self._name)
            self._process.kill()
            self._lock.acquire()
        try:
            self._hanging_up.cancel()
            self._connection.close()
            # The store sees the end of the pipe, writes what is left, and leaves.
            self._process.join(_CLOSE_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        finally:
            self._lock.release()

    def _start(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(theirs, self._factory), name=self._name, daemon=True)
        self._process.start()
        theirs.close()
        # A program that ends without closing: at its exit the process is waited for, and it waits for this.
        self._hanging_up = multiprocessing.util.Finalize(None, self._connection.close, exitpriority=10)
        try:
            succeeded, value = self._connection.recv()
        except EOFError as error:
            raise StartupError(f"the process of {self._name} died while it started; see the log") from error
        if not succeeded:
            self._process.join()
            raise value

    def _restart(self) -> None:
        self._hanging_up.cancel()
        self._connection.close()
        self._process.kill()
        self._process.join()
        self.restart_count += 1
        try:
            self._start()
        except (StartupError, RuntimeError) as error:
            raise ArchiveUnavailable(f"the archive's engine stopped and does not start again: {error}") from error
        logger.warning("the process of %s was started again", self._name)


def _run(connection: Connection[Any, Any], factory: Callable[[], Store]) -> None:
    """Serves calls until the other side goes away. Runs in the process."""
    # Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the service; the server
    # decides when its engine ends.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    try:
        store = factory()
    except Exception as error:  # noqa: BLE001  handed to the other side, whatever it is
        connection.send((False, _portable(error)))
        return
    connection.send((True, None))
    while True:
        timeout_s = _IDLE_S if store.wants_optimizing(idle=True) else None
        waiting = connection.poll(timeout_s)
        if store.wants_optimizing(idle=not waiting):
            try:
                store.optimize()
            except Exception:
                logger.exception("the graph could not be built; slices without one are compared exhaustively")
        if not waiting:
            continue
        try:
            method, args, keywords = connection.recv()
        except (EOFError, OSError):
            store.close()
            return
        try:
            answer = (True, getattr(store, method)(*args, **keywords))
        except Exception as error:  # noqa: BLE001  handed to the other side, whatever it is
            answer = (False, _portable(error))
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)


def _portable(error: Exception) -> Exception:
    """Gives an error that can be sent: engines raise classes that cannot be pickled."""
    if isinstance(error, (EngineError, StartupError, ValueError)):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
