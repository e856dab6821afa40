"""Patient keys: keyed hashes that stand for a PatientID without telling it.

Whoever holds the secret can tell whether two volumes are of one patient; nobody can tell of which. All clients of an
archive use the same secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

_KEY_CHARACTERS = 32
_SECRET_BYTES = 32


def default_secret_file() -> Path:
    """Gives the file of the secret: $SLICEVOTE_PATIENT_SECRET, or one in the user's configuration folder."""
    named = os.environ.get("SLICEVOTE_PATIENT_SECRET")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "slicevote" / "patient-secret"


def patient_secret(file: Path | None = None) -> bytes:
    """Gives the secret that patient keys are made with; makes one at the first use.

    Args:
        file: Where it lies; `default_secret_file()` if none is given.

    Raises:
        OSError: The file can be neither read nor made.
        ValueError: It is too short to be one.
    """
    file = file or default_secret_file()
    if not file.exists():
        _make_secret(file)
    secret = file.read_bytes().strip()
    if len(secret) < _SECRET_BYTES:
        raise ValueError(f"{file}: a patient secret has at least {_SECRET_BYTES} bytes; this one has {len(secret)}")
    return secret


def _make_secret(file: Path) -> None:
    """Makes the file, whole and for its owner alone; of two clients that start at once the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    secret = secrets.token_hex(_SECRET_BYTES).encode()
    _write_new(scratch, secret)
    try:
        os.link(scratch, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        with contextlib.suppress(FileExistsError):
            _write_new(file, secret)
    finally:
        scratch.unlink()


def _write_new(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def patient_key(patient_id: str, secret: bytes) -> str:
    """Gives the key of a patient: HMAC-SHA256, the first 128 bits in hexadecimal; empty for an empty id."""
    if not patient_id.strip():
        return ""
    return hmac.new(secret, patient_id.strip().encode(), hashlib.sha256).hexdigest()[:_KEY_CHARACTERS]
