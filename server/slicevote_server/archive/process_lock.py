"""A lock file that one process at a time holds, and that the operating system releases when the process dies."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import filelock

from slicevote_server.errors import StartupError

logger = logging.getLogger(__name__)

_QUIET_WAIT_S = 1.0


class LockHeld(Exception):
    """Another process holds the lock.

    Attributes:
        holder: "process 1234", or "another process" where the number cannot be read.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"the lock is held by {holder}")
        self.holder = holder


class ProcessLock:
    """The lock of one file, taken when the object is made and held until `release` or the end of the process.

    Child processes do not inherit it. The file stays where it is after a release: removing it would let two processes
    lock two files of the same name.

    Args:
        path: The lock file; its folder must exist. Holds the process id of whoever took the lock last.
        timeout_s: How long to wait for another process to release the lock.

    Raises:
        LockHeld: Another process still holds it after `timeout_s`.
        StartupError: The file cannot be opened or locked.
    """

    def __init__(self, path: Path, *, timeout_s: float = 0.0) -> None:
        self._lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)
        quiet_s = min(timeout_s, _QUIET_WAIT_S)
        try:
            try:
                self._lock.acquire(timeout=quiet_s)
            except filelock.Timeout:
                if timeout_s > quiet_s:
                    logger.warning("waiting for %s to release %s", _holder(path), path)
                self._lock.acquire(timeout=timeout_s - quiet_s)
        except filelock.Timeout as error:
            raise LockHeld(_holder(path)) from error
        except OSError as error:
            raise StartupError(f"the file {path} cannot be locked: {error.strerror}") from error
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file; the number is a courtesy
            path.write_text(str(os.getpid()))

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"
