"""How reading can fail, and the guard around libraries that parse or decode untrusted bytes.

pydicom, nibabel and the decoders quote the values that they complain about, and in a damaged file any value may be
the patient's name. No message of theirs passes `guarded`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class VolumeError(Exception):
    """A file or a slice that cannot be read.

    Attributes:
        path: The file; None if the data did not come from a file.
        reason: What is wrong and, if there is a remedy, what to do. Never identifies a patient.
    """

    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["VolumeError"], tuple[Path | None, str]]:
        """Support pickling, so that the error can cross a process boundary."""
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, or that stands for a series that cannot be used.

    Attributes:
        path: The file; None if the data did not come from a file.
        reason: What is wrong with it. Never identifies a patient.
    """

    path: Path | None
    reason: str

    @classmethod
    def from_error(cls, error: VolumeError) -> "Problem":
        """Return the problem that an error describes."""
        return cls(error.path, error.reason)


class NotAScan(Exception):
    """The data are not DICOM, or a DICOM object that holds no scan; the message says which."""


class DamagedError(Exception):
    """The data cannot be parsed or decoded; the message says why and never identifies a patient."""


def os_reason(error: OSError) -> str:
    """Return why the operating system cannot read a file, in its own words."""
    return f"cannot be read ({error.strerror or type(error).__name__})"


@contextmanager
def guarded(reason: str) -> Iterator[None]:
    """Turn any exception that a library raises about the bytes it is given into a `DamagedError`.

    Guard the call into the library and nothing else: an exception of our own code is a bug and must surface.

    Args:
        reason: What the failure means, for example "the DICOM header is damaged".

    Raises:
        DamagedError: The library failed. Names the type of its exception and hides its message.
        OSError: The operating system refused to read.
    """
    try:
        yield
        return
    except OSError as error:
        if error.errno is not None:
            raise
        kind = type(error).__name__  # raised by a parser, not by the operating system
    except Exception as error:  # noqa: BLE001  a parser may raise anything about damaged bytes
        kind = type(error).__name__
    raise DamagedError(f"{reason} ({kind})") from None
