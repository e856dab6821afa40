"""Sources of DICOM instances: paths, bytes, streams, and anything else that can be opened, such as DICOMweb."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePath
from typing import BinaryIO

from slicevote_volumes.errors import VolumeError

BUFFER_BYTES = 64 * 1024  # nearly every header of a single-frame image fits, so that one read of the file suffices


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """A DICOM instance (a Part-10 file), wherever it is stored.

    It is opened once for its header, and again whenever its pixels are needed, possibly from several threads at once.

    Attributes:
        opener: Opens the data: returns a new, seekable binary stream at its beginning. Raises OSError if it cannot.
        name: What to call the instance in errors, and where it came from: a path or a URL. May be empty. Never
            identifies a patient.
        path: The file; None if the data do not come from a file.
    """

    opener: Callable[[], BinaryIO] = field(repr=False)
    name: str = ""
    path: Path | None = None

    @classmethod
    def from_path(cls, path: Path) -> "Instance":
        """Return the instance in a file; nothing is read yet."""
        return cls(lambda: path.open("rb", buffering=BUFFER_BYTES), str(path), path)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> "Instance":
        """Return the instance in memory; the bytes are kept as long as its volume."""
        return cls(lambda: BytesIO(data), name)

    @classmethod
    def from_stream(cls, stream: BinaryIO, name: str = "") -> "Instance":
        """Return the instance in a stream, which is read to its end and kept in memory.

        For a source that can be read again, such as a DICOMweb server or a spool, give `Instance` an opener instead.
        """
        return cls.from_bytes(stream.read(), name)

    @property
    def folder(self) -> str:
        """Where the instance is stored: its name without the last component; empty if it has no name."""
        return str(PurePath(self.name).parent) if self.name else ""

    def open(self) -> BinaryIO:
        """Open the data; the caller closes the stream.

        Raises:
            OSError: The data cannot be opened.
        """
        return self.opener()

    def sha256(self) -> str:
        """Return the SHA-256 of the data, in hexadecimal.

        Raises:
            OSError: The data cannot be read.
        """
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]

    def error(self, reason: str) -> VolumeError:
        """Return an error that names the instance."""
        return VolumeError(self.path, reason if self.path or not self.name else f"{self.name}: {reason}")
