"""Volume ids: deterministic, and independent of where the files are stored."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import UUID, uuid5

NAMESPACE = UUID("8f4bd5c1-62a7-5d0e-9c58-1e7a40b6d3f2")  # the project's; changing it changes every volume id


def volume_id(kind: str, name: str, split: Mapping[str, str]) -> str:
    """Return the id of a volume, a UUID (version 5).

    Args:
        kind: What `name` is: "dicom" (a Series Instance UID) or "nifti" (the SHA-256 of the file).
        name: What identifies the scan.
        split: What tells the volumes of one scan apart.
    """
    parts = [kind, name, *(f"{key}={value}" for key, value in sorted(split.items()))]
    return str(uuid5(NAMESPACE, "\n".join(parts)))


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the concatenated content of files, in hexadecimal.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
