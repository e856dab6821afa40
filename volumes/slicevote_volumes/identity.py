"""Names of volumes: deterministic, and the same wherever the files lie."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid5

NAMESPACE = UUID("8f4bd5c1-62a7-5d0e-9c58-1e7a40b6d3f2")  # the project's; changing it renames every volume


def volume_id(kind: str, name: str, split: Mapping[str, str]) -> str:
    """Names a volume.

    Args:
        kind: What `name` is: "dicom" (a series UID) or "nifti" (the SHA-256 of the file).
        name: What identifies the scan.
        split: What tells apart the volumes of one scan.
    """
    parts = [kind, name, *(f"{key}={value}" for key, value in sorted(split.items()))]
    return str(uuid5(NAMESPACE, "\n".join(parts)))


def sha256_of(paths: tuple[Path, ...]) -> str:
    """Gives the SHA-256 of the content of files, one after another, in hexadecimal.

    Raises:
        OSError: One cannot be read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view):
                digest.update(view[:count])
    return digest.hexdigest()
