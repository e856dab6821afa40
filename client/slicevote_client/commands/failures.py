"""Failures of a command: what went wrong, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from slicevote.contract import DISK_FULL, PATIENT_SECRET_DIFFERS, VOLUME_UNKNOWN

from slicevote_client.errors import ServerError
from slicevote_client.patients import default_secret_file


class CommandError(Exception):
    """A command failed; ends with exit code 1 and the message."""


def explained(error: ServerError) -> str:
    """Return the message of a server's error with what to do about it, where a command line can tell more."""
    return f"{error}{_advice(error.reason)}"


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the most similar of the known texts; empty where none is similar."""
    similar = difflib.get_close_matches(text, list(known), 1)
    return f"; did you mean '{similar[0]}'?" if similar else ""


def _advice(reason: str) -> str:
    if reason == PATIENT_SECRET_DIFFERS:
        return (
            f". Patient keys are made with the secret in {default_secret_file()}: use the file that the archive was "
            "filled with (SLICEVOTE_PATIENT_SECRET=FILE), or send no patient keys (ingest --no-patient-key)"
        )
    if reason == DISK_FULL:
        return ". Free space on the server's disk, then ingest again with --skip-existing"
    if reason == VOLUME_UNKNOWN:
        return "; 'slicevote volumes' lists those that there are"
    return ""
