"""The kinds of archives, and which one a location means; nothing else in the server knows them."""

from __future__ import annotations

from pathlib import Path

from slicevote_server.archive.edge_archive import EdgeArchive
from slicevote_server.archive.interface import Archive, ArchiveIdentity, ArchiveSettings


def open_archive(location: Path, identity: ArchiveIdentity | None, settings: ArchiveSettings | None = None) -> Archive:
    """Open the archive at a location; make it there if `identity` is given and there is none.

    Args:
        location: Folder of an embedded archive.
        identity: What the archive must have been made for. None opens an existing archive whatever it was made for.
        settings: How the graph is built and searched. Ignored without an identity: the graph stays as it is.

    Raises:
        StartupError: The archive was made for something else, is in use, or cannot be read or written.
    """
    return EdgeArchive(location, identity, settings)
