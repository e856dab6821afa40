"""A time limit for loading a backbone that holds even while a native call holds the interpreter lock."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_STDERR = 2
"""By number: `sys.stderr` may have been replaced by something without a file descriptor."""


@contextlib.contextmanager
def load_limit(path: Path, timeout_s: float) -> Iterator[None]:
    """End the process with exit code 1 and a trace of all threads if the body takes longer than `timeout_s`.

    A native library that blocks may hold the interpreter lock, so that no Python code can run any more, be it a timer
    or a signal handler; faulthandler's watchdog is a native thread that needs no lock. It can say no sentence of ours,
    so the log says it beforehand.

    Args:
        path: The file being loaded, for the log.
        timeout_s: Time limit in seconds; 0 means none.
    """
    if not timeout_s:
        yield
        return
    logger.info("loading %s; the server gives up and exits if this takes longer than %g s", path, timeout_s)
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
