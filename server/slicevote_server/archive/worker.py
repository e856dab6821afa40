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
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from slicevote_server.errors import ArchiveUnavailable, EngineError, StartupError

logger = logging.getLogger(__name__)

# Never fork: threads and locks of gRPC would be copied in the state they happen to be in.
_SPAWN = multiprocessing.get_context("spawn")

WRITES = frozenset({"put", "delete", "record_numerics"})
"""Methods after whose failure the store is opened anew."""

_CLOSED = "the archive is closed"
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
        reopen: Makes the store again after the process died; by default `factory`.

    Raises:
        StartupError: The store could not be made.
    """

    def __init__(self, factory: Callable[[], Store], *, name: str, reopen: Callable[[], Store] | None = None) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._process: SpawnProcess | None = None
        self.restart_count = 0
        self._start(factory)
        self._reopen = reopen or factory

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return None if self._process is None else self._process.pid

    def call(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Calls a method of the store and gives what it returns.

        Raises:
            ArchiveUnavailable: The process died; it has been started again, or will be at the next call.
        """
        with self._lock:
            if self._closed:
                raise ArchiveUnavailable(_CLOSED)
            try:
                if self._process is None or not self._process.is_alive():
                    self._restart()
                succeeded, value = self._exchange((method, args, keywords))
                if not succeeded and method in WRITES and not isinstance(value, (EngineError, ValueError)):
                    # Nobody knows how much of a write that failed is there; a store that is opened anew does.
                    logger.error("a %s failed in the process of %s; it is started anew", method, self._name)
                    with contextlib.suppress(ArchiveUnavailable):
                        self._restart()
            except ArchiveUnavailable:
                raise
            except BaseException:
                # An interrupt in between: an answer that is still to come belongs to nobody.
                self._end()
                raise
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """Closes the store and ends the process."""
        self._closed = True
        if not self._lock.acquire(timeout=_CLOSE_S):
            # In the middle of a long call, as building the graph; whoever made it sees the process die.
            logger.warning("the process of %s is busy and is killed", self._name)
            while not self._lock.acquire(timeout=0.1):
                if (process := self._process) is not None:
                    process.kill()
        try:
            if self._process is not None:
                self._hanging_up.cancel()
                _hang_up(self._connection, self._process)
        finally:
            self._lock.release()

    def _exchange(self, call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> tuple[bool, Any]:
        """Sends a call and waits for its answer.

        Raises:
            ArchiveUnavailable: The process died meanwhile.
        """
        try:
            self._connection.send(call)
            answer: tuple[bool, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            if self._closed:
                raise ArchiveUnavailable(_CLOSED) from error
            logger.error("the process of %s died in a call of %s", self._name, call[0])
            with contextlib.suppress(ArchiveUnavailable):
                self._restart()
            raise ArchiveUnavailable(
                "the archive's engine stopped and was restarted; nothing that was acknowledged is lost, try again"
            ) from error
        return answer

    def _start(self, factory: Callable[[], Store]) -> None:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_run, args=(theirs, factory), name=self._name, daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._connection, self._process = ours, process
        # A program that ends without closing: at its exit the process is waited for.
        self._hanging_up = multiprocessing.util.Finalize(None, _hang_up, (ours, process), exitpriority=10)
        try:
            succeeded, value = ours.recv()
        except EOFError as error:
            self._end()
            raise StartupError(f"the process of {self._name} died while it started; see the log") from error
        except BaseException:
            self._end()
            raise
        if not succeeded:
            self._end()
            raise value

    def _restart(self) -> None:
        self._end()
        self.restart_count += 1
        try:
            self._start(self._reopen)
        except Exception as error:
            reason = str(error) if isinstance(error, StartupError) else type(error).__name__
            raise ArchiveUnavailable(f"the archive's engine stopped and does not start again: {reason}") from error
        logger.warning("the process of %s was started again", self._name)

    def _end(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._hanging_up.cancel()
        self._connection.close()
        process.kill()
        process.join()


def _hang_up(connection: Connection[Any, Any], process: SpawnProcess) -> None:
    """Closes the pipe. The store sees its end, writes what is left, and leaves; if it takes too long, it is killed."""
    connection.close()
    process.join(_CLOSE_S)
    if process.is_alive():
        process.kill()
        process.join()


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
        if not connection.poll(_IDLE_S if store.wants_optimizing(idle=True) else None):
            _optimize(store)
            continue
        try:
            method, args, keywords = connection.recv()
        except (EOFError, OSError):
            store.close()
            return
        if store.wants_optimizing(idle=False):
            _optimize(store)
        try:
            answer = (True, getattr(store, method)(*args, **keywords))
        except Exception as error:  # noqa: BLE001  handed to the other side, whatever it is
            answer = (False, _portable(error))
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)


def _optimize(store: Store) -> None:
    try:
        store.optimize()
    except Exception:
        logger.exception("the graph could not be built; slices without one are compared exhaustively")


def _portable(error: Exception) -> Exception:
    """Gives an error that can be sent: engines raise classes that cannot be pickled."""
    if isinstance(error, (EngineError, StartupError, ValueError)):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
