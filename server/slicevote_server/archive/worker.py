"""A separate process for an engine that holds the interpreter lock.

`Worker` starts the process, sends it one call at a time, and restarts it when it dies. The call in progress then fails
with `ArchiveUnavailable`; whatever was acknowledged is on disk and available again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.util
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from slicevote_server.errors import ArchiveUnavailable, EngineError, StartupError

logger = logging.getLogger(__name__)

# Never fork: threads and locks of gRPC would be copied in the state they happen to be in.
_SPAWN = multiprocessing.get_context("spawn")

_CLOSED = "the archive is closed"
_IDLE_S = 0.5
_CLOSE_S = 20.0
"""Time that a store may take to close, or to finish what it is doing; then it is killed, which loses nothing."""


class Store(Protocol):
    """An object that lives in the process, and whose methods are called from outside."""

    def wants_optimizing(self, *, idle: bool) -> bool:
        """Return whether `optimize` should run now."""
        ...

    def optimize(self) -> None:
        """Do work that no caller waits for."""
        ...

    def close(self) -> None:
        """Leave everything on disk."""
        ...


StoreT = TypeVar("StoreT", bound=Store)
P = ParamSpec("P")
ResultT = TypeVar("ResultT")
MethodT = TypeVar("MethodT", bound=Callable[..., object])


def writes(method: MethodT) -> MethodT:
    """Mark a method of a store that writes: if it fails, the store is reopened, because its state is unknown."""
    method.__dict__["writes"] = True
    return method


@dataclass(frozen=True)
class _Call:
    method: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True)
class _Success:
    value: Any


@dataclass(frozen=True)
class _Failure:
    error: Exception


class Worker(Generic[StoreT]):
    """Calls the methods of a store that lives in another process.

    Args:
        factory: Makes the store, inside the process; must be picklable.
        name: Name of the process in logs.
        reopen: Makes the store again after the process died; by default `factory`.

    Raises:
        StartupError: The store could not be made.
    """

    def __init__(self, factory: Callable[[], StoreT], *, name: str, reopen: Callable[[], StoreT] | None = None) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._process: SpawnProcess | None = None
        self.restart_count = 0
        self._start(factory)
        self._reopen = reopen or factory

    @property
    def pid(self) -> int | None:
        """Process id of the process."""
        return None if self._process is None else self._process.pid

    def call(
        self, method: Callable[Concatenate[StoreT, P], ResultT], /, *args: P.args, **keywords: P.kwargs
    ) -> ResultT:
        """Call a method of the store and return its result.

        Args:
            method: The method, as a function of the store's class; it must be importable by name.
            *args: Its positional arguments, without the store.
            **keywords: Its keyword arguments.

        Raises:
            ArchiveUnavailable: The process died; it has been restarted, or will be by the next call.
        """
        with self._lock:
            if self._closed:
                raise ArchiveUnavailable(_CLOSED)
            try:
                if self._process is None or not self._process.is_alive():
                    self._restart()
                answer = self._exchange(_Call(method, args, keywords))
                if isinstance(answer, _Failure) and getattr(method, "writes", False):
                    # How much of a failed write is there is unknown; a store that is reopened knows.
                    logger.error("%s failed in the process of %s; it is restarted", method.__qualname__, self._name)
                    with contextlib.suppress(ArchiveUnavailable):
                        self._restart()
            except ArchiveUnavailable:
                raise
            except BaseException:
                # An interrupt in between: the answer that is still to come belongs to no call.
                self._end()
                raise
        if isinstance(answer, _Failure):
            raise answer.error
        result: ResultT = answer.value
        return result

    def close(self) -> None:
        """Close the store and end the process."""
        self._closed = True
        if not self._lock.acquire(timeout=_CLOSE_S):
            # In the middle of a long call, such as building the graph; its caller sees the process die.
            logger.warning("killing the process of %s, which is busy", self._name)
            while not self._lock.acquire(timeout=0.1):
                if (process := self._process) is not None:
                    process.kill()
        try:
            if self._process is not None:
                self._hanging_up.cancel()
                _hang_up(self._connection, self._process)
        finally:
            self._lock.release()

    def _exchange(self, call: _Call) -> _Success | _Failure:
        """Send a call and wait for its answer.

        Raises:
            ArchiveUnavailable: The process died meanwhile.
        """
        try:
            self._connection.send(call)
            answer: _Success | _Failure = self._connection.recv()
        except (EOFError, OSError) as error:
            if self._closed:
                raise ArchiveUnavailable(_CLOSED) from error
            logger.error("the process of %s died during %s", self._name, call.method.__qualname__)
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
        # If the program ends without closing, its exit waits for the process.
        self._hanging_up = multiprocessing.util.Finalize(None, _hang_up, (ours, process), exitpriority=10)
        try:
            answer: _Success | _Failure = ours.recv()
        except EOFError as error:
            self._end()
            raise StartupError(f"the process of the {self._name} died at startup; see the log") from error
        except BaseException:
            self._end()
            raise
        if isinstance(answer, _Failure):
            self._end()
            raise answer.error

    def _restart(self) -> None:
        self._end()
        self.restart_count += 1
        try:
            self._start(self._reopen)
        except Exception as error:
            reason = str(error) if isinstance(error, StartupError) else type(error).__name__
            raise ArchiveUnavailable(f"the archive's engine stopped and does not start again: {reason}") from error
        logger.warning("the process of %s was restarted", self._name)

    def _end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._hanging_up.cancel()
        self._connection.close()
        process.kill()
        process.join()


def _hang_up(connection: Connection[Any, Any], process: SpawnProcess) -> None:
    """Close the pipe. The store sees that, writes what is left and exits; if it takes too long, it is killed."""
    connection.close()
    process.join(_CLOSE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _run(connection: Connection[Any, Any], factory: Callable[[], Store]) -> None:
    """Serve calls until the other side goes away. Runs in the process."""
    # Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the service; only the
    # server decides when its engine ends.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    try:
        store = factory()
    except Exception as error:  # noqa: BLE001  raised again on the other side
        connection.send(_failure(error))
        return
    connection.send(_Success(None))
    while True:
        if not connection.poll(_IDLE_S if store.wants_optimizing(idle=True) else None):
            _optimize(store)
            continue
        try:
            call: _Call = connection.recv()
        except (EOFError, OSError):
            store.close()
            return
        if store.wants_optimizing(idle=False):
            _optimize(store)
        answer: _Success | _Failure
        try:
            answer = _Success(call.method(store, *call.args, **call.keywords))
        except Exception as error:  # noqa: BLE001  raised again on the other side
            answer = _failure(error)
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)


def _optimize(store: Store) -> None:
    try:
        store.optimize()
    except Exception:
        logger.exception("the graph could not be built; slices without one are compared exhaustively")


def _failure(error: Exception) -> _Failure:
    """Return an error in a form that can be sent: engines raise classes that cannot be pickled."""
    if isinstance(error, (EngineError, StartupError)):
        return _Failure(error)
    # A fault of ours or of the engine: its trace cannot be sent, and its words might hold anything.
    trace = "".join(traceback.format_tb(error.__traceback__))
    portable = RuntimeError(f"{type(error).__name__}: {error}")
    logger.error("%s in the archive's process:\n%s", type(error).__name__, trace)
    return _Failure(portable)
