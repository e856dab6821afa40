"""Runs of the command."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The command as users get it, without the rest of `slicevote-server`.
PROGRAM = """
import sys, typer
from slicevote_server.errors import EngineError, StartupError
from slicevote_server.evaluation.command import evaluate
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(evaluate)
if __name__ == "__main__":
    try:
        app()
    except (StartupError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Path) -> Run:
    """Runs the command in a process of its own, with the tiny backbone unless another is named."""
    program = tmp_path / "evaluate.py"
    program.write_text(PROGRAM)

    def command(*arguments: object, expect: int = 0, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if "--backbone" not in words:
            words += ["--backbone", str(tiny_backbone)]
        finished = subprocess.run(
            [sys.executable, str(program), *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "COLUMNS": "1000"},  # else sentences are broken wherever a terminal would end
        )
        assert finished.returncode == expect, finished.stderr + finished.stdout
        assert "Traceback" not in finished.stderr
        return finished

    return command


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Reads a table."""
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))
