"""The whole evaluation, all schemes and three indexes, against the bare embedding of the same slices."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from slicevote_evaluation.datasets import read_datasets
from slicevote_evaluation.progress import Reporter
from slicevote_evaluation.run import EvaluationSettings, evaluate_backbone, open_backbone
from slicevote_server.intensity import IntensityPolicy, prepare
from slicevote_server.runtime import RuntimeSettings, open_runtime
from slicevote_volumes import read_volumes

from benchmarks.measure import Result
from benchmarks.scans import write_series

PATIENTS = 24
SLICES = 30
BATCH = 8
RUNS = 3

MODES = {"split": False, "leave_one_patient_out": True}


def measure(backbone: Path) -> Iterator[Result]:
    """Measure evaluations of drawn series of 512 x 512, each from nothing, in turns with the bare embedding."""
    reporter, settings = Reporter(Console(quiet=True)), EvaluationSettings()
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as scratch:
        data = _write_dataset(Path(scratch) / "data")
        slices = _prepared_slices(data)
        runtime = open_runtime(backbone, "fp32", RuntimeSettings("cpu"))

        def embed() -> None:
            for start in range(0, len(slices), BATCH):
                runtime.embed(slices[start : start + BATCH])

        embed()
        for run in range(RUNS):
            for mode, leave_one_patient_out in MODES.items():
                dataset = read_datasets([data], leave_one_patient_out=leave_one_patient_out)
                with ExitStack() as stack:
                    work = Path(scratch) / f"{mode}-{run}"
                    served, folder = open_backbone(backbone, "cpu", dataset, work, settings, stack)
                    evaluate = partial(evaluate_backbone, mode, served, dataset, folder, settings, reporter)
                    ratios[mode].append(_seconds(evaluate) / _seconds(embed))
    for mode, values in ratios.items():
        yield Result(
            f"evaluation_over_bare_embedding[{mode}]",
            statistics.median(values),
            "x",
            "lower",
            "bare embedding of the same slices, prepared, in turns",
            f"{PATIENTS * SLICES} slices of 512 x 512 as DICOM, {RUNS} runs: {min(values):.2f} to {max(values):.2f}. "
            "Opening the backbone and its archive, and writing tables and figures, is in neither",
        )


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _write_dataset(folder: Path) -> Path:
    rows = ["path\tmodality\tbody_region\torgan\tpatient\tsplit"]
    for patient in range(PATIENTS):
        write_series(folder / f"p{patient}", slices=SLICES, seed=patient)
        kind, split = patient % 4, "query" if patient % 3 == 0 else "database"
        rows.append(f"p{patient}\tCT\tregion{kind // 2}\torgan{kind}\tp{patient}\t{split}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder


def _prepared_slices(data: Path) -> np.ndarray:
    """Return the grey values of all slices, float32 [N, 224, 224]."""
    policy = IntensityPolicy()
    return np.stack(
        [
            prepare(image, modality="CT", intensity_range=None, policy=policy, thumbnail=False).grey
            for patient in range(PATIENTS)
            for volume in read_volumes(data / f"p{patient}")
            for image in volume.slices(range(len(volume)))
        ]
    )
