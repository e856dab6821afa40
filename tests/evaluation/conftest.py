"""Runs of the command."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = (str(Path(sys.executable).with_name("slicevote-evaluate")),)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(tiny_backbone: Path) -> Run:
    """Runs the command in a process of its own, with the tiny backbone unless another is named."""

    def command(*arguments: object, expect: int = 0, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if "--backbone" not in words:
            words += ["--backbone", str(tiny_backbone)]
        finished = subprocess.run(
            [*COMMAND, *words],
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


def slice_counts(finished: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """How many slices a run with `--json` and one backbone embedded, and how many it found embedded."""
    (counts,) = json.loads(finished.stdout)["slices"]
    return counts["embedded"], counts["reused"]


def svg_texts(path: Path) -> list[str]:
    """The texts in a figure."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))
