"""A server's data folder: where the archives and side indexes of its backbones are, and which process may use it."""

from __future__ import annotations

from pathlib import Path

from slicevote_server.archive.process_lock import LockHeld, ProcessLock
from slicevote_server.errors import StartupError

_LOCK_FILE = "server.lock"


class DataFolder:
    """A data folder, held by this process until `close`.

    The lock covers all archives of the folder. It is taken before any of them is opened: merely opening an archive that
    another process uses damages it.

    Args:
        path: The folder.
        create: Make the folder where it does not exist.

    Raises:
        StartupError: The folder does not exist, cannot be written, or is in use by another process.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._archives = path / "archives"
        if create:
            make_writable_folder(self._archives)
        elif not self._archives.is_dir():
            raise StartupError(f"{path} holds no archive; name the folder that 'serve --data' was given")
        try:
            self._lock = ProcessLock(path / _LOCK_FILE)
        except LockHeld as error:
            raise StartupError(
                f"the data folder {path} is in use by {error.holder}; stop that server, or choose another --data folder"
            ) from error

    def backbones(self) -> list[str]:
        """Return the names of the backbones that have an archive here, in order."""
        return sorted(path.name for path in self._archives.iterdir() if path.is_dir())

    def archive(self, backbone: str) -> Path:
        """Return the folder of a backbone's embedded archive."""
        return self._archives / backbone / "edge"

    def lsh(self, backbone: str) -> Path:
        """Return the folder of a backbone's LSH index."""
        return self._archives / backbone / "lsh"

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()


def make_writable_folder(folder: Path) -> None:
    """Make a folder where there is none, and check that it can be written.

    Raises:
        StartupError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another --data"
        ) from error
