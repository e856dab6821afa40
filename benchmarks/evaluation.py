"""The whole evaluation, all columns and three indexes, against the bare embedding that it measures in between."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Result
from benchmarks.scans import write_series
from benchmarks.serving import COMMANDS

PATIENTS = 24
SLICES = 30
RUNS = 3

MODES = {"split": (), "leave_one_patient_out": ("--leave-one-patient-out",)}


def measure(backbone: Path) -> Iterator[Result]:
    """Measure evaluations of drawn series of 512 x 512, each from nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        data = _write_dataset(Path(scratch) / "data")
        ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
        for run in range(RUNS):
            for mode, options in MODES.items():
                ratios[mode].append(_evaluate(data, Path(scratch) / f"{mode}-{run}", backbone, options))
    for mode, values in ratios.items():
        yield Result(
            f"evaluation_over_bare_embedding[{mode}]",
            statistics.median(values),
            "x",
            "lower",
            "bare embedding of the same slices, measured in between",
            f"{PATIENTS * SLICES} slices of 512 x 512 as DICOM, {RUNS} runs: {min(values):.2f} to {max(values):.2f}",
        )


def _write_dataset(folder: Path) -> Path:
    rows = ["path\tmodality\tbody_region\torgan\tpatient\tsplit"]
    for patient in range(PATIENTS):
        write_series(folder / f"p{patient}", slices=SLICES, seed=patient)
        kind, split = patient % 4, "query" if patient % 3 == 0 else "database"
        rows.append(f"p{patient}\tCT\tregion{kind // 2}\torgan{kind}\tp{patient}\t{split}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder


def _evaluate(data: Path, out: Path, backbone: Path, options: tuple[str, ...]) -> float:
    command = [str(COMMANDS / "slicevote-server"), "evaluate", "--data", str(data), "--out", str(out)]
    command += ["--backbone", str(backbone), "--json", *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(finished.stdout)["times"][0]["times_bare_embedding"])
