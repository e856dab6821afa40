"""Patient keys: keyed hashes that stand for a PatientID without revealing it.

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

from slicevote.contract import SECRET_FINGERPRINT_MESSAGE

_KEY_CHARACTERS = 32
_FINGERPRINT_CHARACTERS = 16
_SECRET_BYTES = 32


class PatientSecretError(Exception):
    """The file of the patient secret can be neither read nor created, or holds no secret."""


def default_secret_file() -> Path:
    """Return the file of the secret: $SLICEVOTE_PATIENT_SECRET, or one in the user's configuration folder."""
    named = os.environ.get("SLICEVOTE_PATIENT_SECRET")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "slicevote" / "patient-secret"


def patient_secret(file: Path | None = None) -> bytes:
    """Return the secret that patient keys are made with; create it on first use.

    Args:
        file: The secret's file; `default_secret_file()` if None.

    Raises:
        PatientSecretError: The file can be neither read nor created, or is too short.
    """
    file = file or default_secret_file()
    try:
        if not file.exists():
            _create(file)
        secret = file.read_bytes().strip()
    except OSError as error:
        raise PatientSecretError(
            f"the patient secret {file} cannot be read or created: {error.strerror}; "
            "SLICEVOTE_PATIENT_SECRET names another file"
        ) from error
    if len(secret) < _SECRET_BYTES:
        raise PatientSecretError(
            f"{file}: a patient secret has at least {_SECRET_BYTES} bytes; this one has {len(secret)}"
        )
    return secret


def patient_key(patient_id: str, secret: bytes) -> str:
    """Return the key of a patient: HMAC-SHA256, the first 128 bits in hexadecimal; empty for an empty ID."""
    if not patient_id.strip():
        return ""
    return hmac.new(secret, patient_id.strip().encode(), hashlib.sha256).hexdigest()[:_KEY_CHARACTERS]


def secret_fingerprint(secret: bytes) -> str:
    """Return 64 bits in hexadecimal by which secrets are compared; they reveal neither the secret nor a patient."""
    return hmac.new(secret, SECRET_FINGERPRINT_MESSAGE, hashlib.sha256).hexdigest()[:_FINGERPRINT_CHARACTERS]


def _create(file: Path) -> None:
    """Write a new secret, complete and readable by its owner only; of two clients that start at once the first wins."""
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
