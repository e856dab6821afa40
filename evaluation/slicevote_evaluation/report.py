"""The readable report: `report.md`. Its tables are narrow; the complete ones are the TSV files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from slicevote_volumes import Problem

from slicevote_evaluation.published import BODY_REGION, MEAN_EMBEDDING, MODALITY, ORGAN, PAPER_EMBEDDINGS, TASKS
from slicevote_evaluation.run import EvaluationSettings
from slicevote_evaluation.schemes import ALL, GAUSSIAN, LATE_INTERACTION, SLICE_WISE
from slicevote_evaluation.tables import MEAN, OVERALL, Results
from slicevote_evaluation.tsv_files import PRECISION, RECALL

REPORT = "report.md"

_TITLES = {MODALITY: "Modality", BODY_REGION: "Body region", ORGAN: "Organ"}
_SUMMARISED = [ALL, GAUSSIAN, LATE_INTERACTION, SLICE_WISE]


def write_report(
    results: Results, settings: EvaluationSettings, problems: Sequence[Problem], files: Sequence[Path], folder: Path
) -> Path:
    """Write the report and return its file.

    Args:
        results: The results.
        settings: How they were made.
        problems: What could not be used.
        files: What else was written.
        folder: Where to write.
    """
    lines = [
        *_data(results, settings),
        *_problems(problems),
        *_summary(results),
        *(line for level in results.dataset.levels for line in _level(results, level)),
        *_comparison(results),
        *_agreement(results),
        "## Files",
        "",
        *(f"- `{path.name}`" for path in files if path.suffix == ".tsv"),
        "",
        f"`{RECALL}` and `{PRECISION}` have a row for every class, index and backbone, and a column for every scheme; "
        "docs/how-to/reproduce-the-paper.md explains them.",
    ]
    path = folder / REPORT
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _table(table: pd.DataFrame, digits: int = 3) -> Iterator[str]:
    """Yield a Markdown table; columns of numbers are right-aligned, NaN is a dash."""
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    yield "| " + " | ".join(map(str, table.columns)) + " |"
    yield "|" + "|".join(" ---: " if number else " --- " for number in numbers) + "|"
    for row in table.itertuples(index=False):
        cells = (
            "–"
            if pd.isna(cell)
            else f"{cell:.{digits}f}"
            if isinstance(cell, float)
            else f"{cell:,}"
            if number
            else cell
            for cell, number in zip(row, numbers, strict=True)
        )
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _data(results: Results, settings: EvaluationSettings) -> Iterator[str]:
    dataset, cases = results.dataset, results.cases
    mode = (
        "every case is query and database, and a query cannot find its own patient (leave one patient out)"
        if dataset.leave_one_patient_out
        else "database and queries as in the data set's split"
    )
    yield "# Evaluation"
    yield ""
    yield f"Data: {', '.join(f'`{root.resolve().name}`' for root in dataset.roots)}; {mode}."
    yield ""
    roles = {"database": cases[cases["is_database"]], "queries": cases[cases["is_query"]]}
    sums = [
        (role, len(own), *(int(own[column].sum()) for column in ("volumes", "slices", "blank_slices")))
        for role, own in roles.items()
    ]
    yield from _table(pd.DataFrame(sums, columns=["", "cases", "volumes", "slices", "blank"]))
    for entry in results.backbones:
        yield f"- {entry.name}: {entry.backbone.dimension} dimensions, computed in {entry.numerics}"
    yield (
        f"- smoothing {settings.engine.policy.smoothing_px:g} px; Gaussian (`{GAUSSIAN}`) sigma {settings.sigma:.4g} "
        f"of the volume; random samplings with seed {settings.seed}"
    )
    yield ""


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    if problems:
        yield f"## What could not be used ({len(problems)})"
        yield ""
        yield from (f"- `{problem.path}`: {problem.reason}" for problem in problems)
        yield ""


def _summary(results: Results) -> Iterator[str]:
    yield "## Recall of the first match"
    yield ""
    recall = results.table("recall")[_SUMMARISED].reset_index("index").pivot(columns="index")
    first = results.indexes[0].name
    columns = [(ALL, index.name) for index in results.indexes] + [(scheme, first) for scheme in _SUMMARISED[1:]]
    rows = [
        (level, label, backbone.name)
        for level in results.dataset.levels
        for label in (MEAN, OVERALL)
        for backbone in results.backbones
    ]
    table = recall.reindex(index=rows, columns=pd.MultiIndex.from_tuples(columns)).reset_index()
    table.columns = ["level", "class", "backbone", *(f"`{scheme}` {index}" for scheme, index in columns)]
    yield from _table(table.drop(columns=[] if len(results.backbones) > 1 else ["backbone"]))
    yield (
        f"`{ALL}`: every slice votes 1; `{GAUSSIAN}`: Gaussian votes; `{LATE_INTERACTION}`: `{ALL}`, re-ranked; "
        f"`{SLICE_WISE}`: no aggregation, every slice is a case."
    )
    yield ""


def _level(results: Results, level: str) -> Iterator[str]:
    classes = results.classes(level)
    yield f"## {_TITLES[level]}"
    yield ""
    unfindable = classes.index[(classes["queries"] > 0) & ~classes["findable"]]
    if len(unfindable):
        other = " of another patient" if results.dataset.leave_one_patient_out else ""
        count = classes["queries"][unfindable].sum()
        yield (
            f"**No database volume{other}** for {', '.join(unfindable)} ({count} cases): these classes cannot be found "
            "and are left out of every mean and of precision."
        )
        yield ""
    not_queried = classes.index[classes["queries"] == 0]
    if len(not_queried):
        yield f"In the database only: {', '.join(not_queried)}."
        yield ""
    index = results.indexes[0].name
    findable = classes.index[classes["findable"]]
    table = classes.loc[findable, ["database", "queries"]]
    for measure in ("recall", "precision"):
        values = results.table(measure)[ALL].unstack("backbone").xs((level, index), level=("level", "index"))
        for entry in results.backbones:
            title = measure if len(results.backbones) == 1 else f"{measure}, {entry.name}"
            table[title] = values[entry.name].reindex(findable)
    table = table.rename(columns={"database": "database volumes", "queries": "query cases"})
    yield f"{index}, `{ALL}`:"
    yield ""
    yield from _table(table.reset_index(names="class"))
    for entry in results.backbones:
        yield f"![confusion](confusion_{level}_{entry.name}.png)"
        yield ""
    if level == results.dataset.levels[-1]:
        yield f"![recall](recall_{level}.png)"
        yield ""


def _comparison(results: Results) -> Iterator[str]:
    dataset, cases = results.dataset, results.cases
    if not dataset.tasks:
        return
    yield "## Comparison with the paper"
    yield ""
    if results.comparison.empty:
        yield (
            "None: the paper's values are for the Decathlon alone, in its own split, by body region, with HNSW and LSH."
        )
        yield ""
        return
    missing = [task.folder for task in TASKS if task not in dataset.tasks]
    if missing:
        yield (
            f"**Not the paper's data set**: {', '.join(missing)} missing. The fewer classes there are to confuse, the "
            "easier the task."
        )
        yield ""
    database, queries = sum(task.database_cases for task in TASKS), sum(task.query_cases for task in TASKS)
    yield (
        f"Cases here: {cases['is_database'].sum()} in the database, {cases['is_query'].sum()} queries; the paper's: "
        f"{database} and {queries}. Every scheme is in `paper_comparison.tsv`; this is `{ALL}`."
    )
    yield ""
    others = [entry.name for entry in results.backbones if entry.backbone.name not in PAPER_EMBEDDINGS]
    if others:
        yield (
            f"**Not the paper's backbone**: {', '.join(others)} is not one of the paper's five embeddings; it is "
            f"compared with the {MEAN_EMBEDDING}."
        )
        yield ""
    by_votes = results.comparison[results.comparison["scheme"] == ALL]
    yield from _table(by_votes.drop(columns=["scheme"]).rename(columns={"paper_embedding": "paper's embedding"}))


def _agreement(results: Results) -> Iterator[str]:
    agreement = results.index_agreement
    if agreement.empty:
        return
    yield "## Agreement with exact search"
    yield ""
    columns = {
        "slices": "slices",
        "recall_at_1": "recall@1 by distance",
        "compared_exhaustively": "compared exhaustively",
        "same_first_match": f"same first match (`{ALL}`)",
    }
    yield from _table(agreement[list(columns)].rename(columns=columns).reset_index(), digits=4)
