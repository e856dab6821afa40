"""`slicevote` as a user runs it: a process, its exit code, its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]


def slicevote(address: str, secret: Path) -> Run:
    """Returns a function that runs `slicevote` with its arguments against a server; it returns the finished process."""

    def run(*words: object, against: str = address, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "SLICEVOTE_SERVER": against,
            "SLICEVOTE_PATIENT_SECRET": str(secret),
            **variables,
        }
        command = Path(sys.executable).parent / "slicevote"
        return subprocess.run(
            [str(command), *map(str, words)],
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            env=environment,
            check=False,
        )

    return run
