"""A whole evaluation: from data sets and backbones to tables, figures and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from slicevote_server.archive.interface import Index
from slicevote_server.backbone import read_backbone
from slicevote_server.engine import Engine, EngineSettings
from slicevote_server.errors import StartupError
from slicevote_server.runtime import RuntimeSettings
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.voting import DEFAULT_SIGMA
from slicevote_volumes import Problem

from slicevote_evaluation.database import Database
from slicevote_evaluation.datasets import Dataset
from slicevote_evaluation.embeddings import EmbeddingStore, embed_cases
from slicevote_evaluation.matching import Matcher
from slicevote_evaluation.progress import Reporter
from slicevote_evaluation.schemes import Scheme, all_schemes
from slicevote_evaluation.tables import EvaluatedBackbone, Results

WORK = "work"
"""Folder, inside the output folder, of what is kept between runs."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Attributes:
        indexes: Where slices are looked up.
        sigma: Width of the Gaussian, as a fraction of the volume.
        seed: Seed of the random samplings.
        providers: What backbones run on; several are compared. By default ONNX Runtime on the processor, so that
            results do not depend on the machine.
        engine: Settings of the engine.
    """

    indexes: tuple[Index, ...] = (Index.HNSW, Index.LSH, Index.EXACT)
    sigma: float = DEFAULT_SIGMA
    seed: int = 0
    providers: tuple[str, ...] = ("cpu",)
    engine: EngineSettings = field(default_factory=lambda: EngineSettings(thumbnails=False))

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes to compare."""
        return all_schemes(sigma=self.sigma, seed=self.seed)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        results: Its results.
        problems: What could not be used.
        files: What was written.
    """

    results: Results
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]


def evaluate(
    dataset: Dataset, backbones: Sequence[Path], out: Path, settings: EvaluationSettings, reporter: Reporter
) -> Evaluation:
    """Evaluate data sets with every backbone, and write the results.

    Args:
        dataset: What to evaluate.
        backbones: ONNX files.
        out: Folder of the results, and of what is kept between runs.
        settings: How to evaluate.
        reporter: Told about the progress.

    Raises:
        StartupError: A backbone or the folder cannot be used, or there is nothing to evaluate.
        EngineError: The archive failed; run again to continue.
    """
    problems: list[Problem] = []

    def name_problems(found: Sequence[Problem]) -> None:
        for problem in found:
            if problem not in problems:
                problems.append(problem)
                reporter.say(f"problem: {problem.path}: {problem.reason}")

    name_problems(dataset.problems)
    if not any(case.is_query for case in dataset.cases) or not any(case.is_database for case in dataset.cases):
        raise StartupError("nothing to evaluate: there must be queries and a database, both with labels")
    names = [read_backbone(path).name for path in backbones]
    if len(set(names)) < len(names):
        raise StartupError(f"a backbone was given twice ({', '.join(names)}); give each once")
    evaluated: list[EvaluatedBackbone] = []
    with ExitStack() as stack:
        # All are opened first: one that cannot be used should not end a run that has taken hours.
        opened: dict[str, tuple[ServedBackbone, Path]] = {}
        for path in backbones:
            for provider in settings.providers:
                served, folder = open_backbone(path, provider, dataset, out / WORK, settings, stack)
                numerics = served.embedder.numerics
                suffix = f"+{numerics.runtime}-{numerics.precision}" if len(settings.providers) > 1 else ""
                name = served.backbone.name + suffix
                if name in opened:
                    raise StartupError(f"two of the providers are the same here ({name}); give one of them")
                opened[name] = served, folder
        for name, (served, folder) in opened.items():
            evaluated.append(evaluate_backbone(name, served, dataset, folder, settings, reporter))
            name_problems(evaluated[-1].embedded.problems)
    if not evaluated[0].embedded.contents:
        raise StartupError("nothing to evaluate: no scan could be read; the problems are named above")
    results = Results(dataset, settings.indexes, settings.schemes, tuple(evaluated))
    # Matplotlib takes a second to import.
    from slicevote_evaluation.figures import draw_figures
    from slicevote_evaluation.report import write_report
    from slicevote_evaluation.tsv_files import write_tables

    files = write_tables(results, out)
    files += draw_figures(results, out)
    files.append(write_report(results, settings, problems, files, out))
    return Evaluation(results, tuple(problems), tuple(files))


def open_backbone(
    path: Path, provider: str, dataset: Dataset, work: Path, settings: EvaluationSettings, stack: ExitStack
) -> tuple[ServedBackbone, Path]:
    """Open a backbone with an archive of its own, which the stack closes.

    Returns:
        The backbone, and the folder of what is kept between runs.

    Raises:
        StartupError: It is not a backbone, or does not compute what it should.
    """
    backbone = read_backbone(path)
    parts = json.dumps([backbone.manifest_json, asdict(settings.engine.policy), provider])
    folder = work / f"{backbone.name}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    mode = "leave-one-patient-out" if dataset.leave_one_patient_out else "split"
    lsh = settings.engine.lsh if Index.LSH in settings.indexes else None
    # Strict: vectors of two numerics in one archive would make the tables depend on the order of the runs.
    runtime = RuntimeSettings(provider, settings.engine.runtime.threads, strict=True)
    engine = Engine(folder / mode, [path], replace(settings.engine, lsh=lsh, runtime=runtime))
    stack.callback(engine.close)
    return engine.backbone(), folder


def evaluate_backbone(
    name: str,
    served: ServedBackbone,
    dataset: Dataset,
    folder: Path,
    settings: EvaluationSettings,
    reporter: Reporter,
) -> EvaluatedBackbone:
    """Embed every slice once, look every query slice up once in every index, and let every scheme vote.

    Args:
        name: Name of the backbone in the tables.
        served: The backbone.
        dataset: What to evaluate.
        folder: Where embeddings are kept.
        settings: How to evaluate.
        reporter: Told about the progress.
    """
    numerics = served.embedder.numerics
    store = EmbeddingStore(folder / "embeddings" / "-".join(numerics.as_mapping().values()))
    database = Database(served, store)
    embedded = embed_cases(dataset.cases, served, settings.engine, store, database.add, reporter)
    database.complete()
    matcher = Matcher(dataset, embedded.contents, served, store, settings.indexes, settings.schemes)
    matches = matcher.match(reporter, f"searching with {name}")
    return EvaluatedBackbone(name, served.backbone, numerics, embedded, matches)
