"""Logging: one format and one level for the server's lines, and no others on stderr.

gRPC and ONNX Runtime write lines of their own to stderr, past Python's logging.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

LEVELS = ("debug", "info", "warning", "error")

_STDERR = 2
_FORMAT = "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"


def configure_logging(level: str, *filters: logging.Filter) -> None:
    """Log to stderr.

    Args:
        level: One of `LEVELS`.
        filters: What adds to records, such as the `request_id`; lines without one have "-".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, defaults={"request_id": "-"}))
    for added in filters:
        handler.addFilter(added)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def silence_grpc() -> None:
    """Keep gRPC from writing to stderr; call it before gRPC is imported.

    What gRPC has to say also reaches us as exceptions. Set GRPC_VERBOSITY to see its lines.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@contextlib.contextmanager
def native_lines_as_debug(logger: logging.Logger) -> Iterator[None]:
    """Log what native code writes to stderr in the body at level DEBUG.

    Only for the import of a library that cannot be told to be silent: the whole process's stderr is redirected.
    """
    try:
        saved = os.dup(_STDERR)
    except OSError:
        # There is no stderr to keep clean.
        yield
        return
    with tempfile.TemporaryFile() as lines:
        try:
            os.dup2(lines.fileno(), _STDERR)
            yield
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            lines.seek(0)
            for line in lines.read().decode(errors="replace").splitlines():
                logger.debug("%s", line)
