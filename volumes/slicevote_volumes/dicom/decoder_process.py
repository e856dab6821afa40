"""Decompresses pixels in a process of its own.

The decoders of JPEG and its relatives are C++ libraries, and a damaged file can make them crash the process that they
run in. That must not be the server, nor a client in the middle of a tree of files. So they run in a child process,
which is started with the first compressed frame and again after it has died.
"""

import atexit
import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.errors import DamagedError, guarded

MEMORY_LIMIT_BYTES = 4 << 30
"""Address space of the child: a few kilobytes can claim to be an image of gigabytes."""

DECODING_S = 60.0
"""How long one frame may take."""

_MODULE = "slicevote_volumes.dicom.decoder_process"
_LENGTH = struct.Struct("<Q")
_BROKE_OFF = "the decoder broke off"


class DecoderProcess:
    """Decodes frames in a child process, one at a time. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def decode(self, transfer_syntax: str, data: bytes, options: dict[str, Any]) -> NDArray[Any]:
        """Decode one frame.

        Args:
            transfer_syntax: UID of its transfer syntax.
            data: The frame, encapsulated.
            options: What pydicom's decoders must be told about pixels that do not come in a data set.

        Returns:
            Pixels [rows, columns] or [rows, columns, samples], of numbers. What the child has read may be hostile:
            check the shape.

        Raises:
            DamagedError: The frame cannot be decoded.
        """
        request = pickle.dumps((transfer_syntax, data, options))
        with self._lock:
            child = self._running()
            # A decoder that never ends on a crafted file would block all others.
            timer = threading.Timer(DECODING_S, child.kill)
            timer.start()
            try:
                answer = _exchange(child, request)
            except BaseException:
                # The child is gone or, after an interrupt, an answer is still to come that belongs to nobody.
                self._end()
                raise
            finally:
                timer.cancel()
        if answer.dtype.kind == "U":
            raise DamagedError(str(answer))
        if answer.dtype.kind not in "biuf":
            raise DamagedError(_BROKE_OFF)
        return answer

    def close(self) -> None:
        """End the child process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = subprocess.Popen(  # noqa: S603  this interpreter, this module
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child

    def _end(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                _open(stream).close()


def _exchange(child: subprocess.Popen[bytes], request: bytes) -> NDArray[Any]:
    """Send a request and return its answer.

    Raises:
        DamagedError: The child ended, or answered nonsense.
    """
    try:
        _open(child.stdin).write(request)
        _open(child.stdin).flush()
        prefix = _open(child.stdout).read(_LENGTH.size)
    except OSError:
        raise DamagedError(_BROKE_OFF) from None
    if len(prefix) < _LENGTH.size:
        raise DamagedError(_BROKE_OFF)
    # No pickle on the way back: what has read a hostile file is not to be trusted.
    with guarded(_BROKE_OFF):
        data = _open(child.stdout).read(_LENGTH.unpack(prefix)[0])
        answer: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
    return answer


def _open(stream: Any) -> BinaryIO:
    opened: BinaryIO = stream
    return opened


def _decode(transfer_syntax: str, data: bytes, options: dict[str, Any]) -> NDArray[Any]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    decoded, _ = get_decoder(UID(transfer_syntax)).as_array(data, index=0, **options)
    return np.ascontiguousarray(decoded)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def _serve() -> None:
    """Answer requests until the other side goes away. Runs in the child."""
    # A service manager tells every process of a service to end; the parent decides when this one does.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    # Libraries print to standard output; the answers have a way of their own.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit_memory()
    while True:
        try:
            transfer_syntax, data, options = pickle.load(sys.stdin.buffer)  # noqa: S301  from the parent
        except EOFError:
            return
        try:
            answer = _decode(transfer_syntax, data, options)
        except Exception as error:  # noqa: BLE001  whatever a decoder raises; its words may quote the file
            answer = np.array(type(error).__name__)
        buffer = BytesIO()
        np.save(buffer, answer, allow_pickle=False)
        answers.write(_LENGTH.pack(buffer.tell()))
        answers.write(buffer.getbuffer())
        answers.flush()


if __name__ == "__main__":
    _serve()
