"""The whole evaluation: data sets in; tables, figures and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicevote_volumes import Problem

from slicevote_server.errors import StartupError
from slicevote_server.evaluation.backbone_run import (
    BackboneResult,
    EvaluationSettings,
    evaluate_backbone,
    open_backbone,
)
from slicevote_server.evaluation.comparison import NUMERICS_MARK, compare
from slicevote_server.evaluation.datasets import Dataset
from slicevote_server.evaluation.progress import Reporter
from slicevote_server.evaluation.results import Results
from slicevote_server.evaluation.tables import write_tables

WORK = "work"
"""Folder, inside the output folder, of what is kept between runs."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        results: The figures.
        problems: What could not be used.
        files: What was written.
    """

    results: Results
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]


def evaluate(
    dataset: Dataset, backbones: Sequence[Path], out: Path, settings: EvaluationSettings, reporter: Reporter
) -> Evaluation:
    """Evaluates data sets with every backbone and writes everything down.

    Args:
        dataset: What is evaluated.
        backbones: ONNX files.
        out: Folder of the results; what is kept between runs lies in it, too.
        settings: How.
        reporter: Is told what goes on.

    Raises:
        StartupError: A backbone or the folder cannot be used, or there is nothing to evaluate.
        ArchiveUnavailable: The archive's engine stopped; running again goes on from there.
    """
    for problem in dataset.problems:
        reporter.say(f"problem: {problem.path}: {problem.reason}")
    if not any(source.is_query for source in dataset.sources) or not any(
        source.is_database for source in dataset.sources
    ):
        raise StartupError("there is nothing to evaluate: queries and a database are needed, both with labels")
    opened = {}
    for path in backbones:
        for provider in settings.providers:
            backbone, runtime = open_backbone(path, settings, provider)
            name = backbone.name
            if len(settings.providers) > 1:
                name += f"{NUMERICS_MARK}{runtime.numerics.runtime}-{runtime.numerics.precision}"
            if name in opened:
                raise StartupError(f"{path}: '{name}' is given twice; give each backbone and each provider once")
            opened[name] = backbone, runtime
    problems = list(dataset.problems)
    found: list[BackboneResult] = []
    for name, (backbone, runtime) in opened.items():
        result = evaluate_backbone(name, dataset, backbone, runtime, settings, out / WORK, reporter)
        for problem in result.problems:
            if problem not in problems:
                problems.append(problem)
                reporter.say(f"problem: {problem.path}: {problem.reason}")
        found.append(result)
    results = Results(dataset, settings, tuple(found))
    if not results.sources:
        raise StartupError("there is nothing to evaluate: no scan could be read; the problems are named above")
    compared = compare(results)
    files = write_tables(results, compared, out)
    # Matplotlib takes a second to import; nothing but this needs it.
    from slicevote_server.evaluation.figures import draw_figures
    from slicevote_server.evaluation.report import write_report

    files += draw_figures(results, out)
    files.append(write_report(results, compared, problems, files, out))
    return Evaluation(results, tuple(problems), tuple(files))
