"""The readable report: `report.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slicevote_volumes import Problem

from slicevote_server.evaluation.comparison import MEAN_EMBEDDING, Compared
from slicevote_server.evaluation.metrics import MEAN, OVERALL
from slicevote_server.evaluation.published import PAPER_EMBEDDINGS, TASKS
from slicevote_server.evaluation.results import Results, Row, Variant
from slicevote_server.evaluation.schemes import ALL, SLICEWISE
from slicevote_server.evaluation.tables import account, bare_ratio

REPORT = "report.md"

_TITLES = {"modality": "Modality", "body_region": "Body region", "organ": "Organ"}


def write_report(
    results: Results, compared: Sequence[Compared], problems: Sequence[Problem], files: Iterable[Path], folder: Path
) -> Path:
    """Writes the report and gives its file.

    Args:
        results: What was found.
        compared: Our figures beside the paper's.
        problems: What could not be used.
        files: What else was written.
        folder: Where to.
    """
    figures = [path for path in files if path.suffix == ".png"]
    lines = [
        *_opening(results),
        *_problems(problems),
        *_summary(results),
        *(line for level in results.dataset.levels for line in _level(results, level, figures)),
        *_spread(results, figures),
        *_comparison(results, compared),
        *_agreement(results),
        *_times(results),
        *_meaning(results),
    ]
    path = folder / REPORT
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Gives a Markdown table; all columns but the first are set to the right where they hold numbers."""
    body = [list(row) for row in rows]
    right = [bool(body) and all(_is_number(row[place]) for row in body) for place in range(len(header))]
    return [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(" ---: " if number else " --- " for number in right) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body),
        "",
    ]


def _is_number(cell: str) -> bool:
    return not cell or cell == "–" or cell.strip("+-").replace(",", "").replace(".", "", 1).isdigit()


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _opening(results: Results) -> Iterator[str]:
    dataset = results.dataset
    volumes = results.backbones[0].volumes
    yield "# Evaluation"
    yield ""
    mode = (
        "every case is query and database, its own patient's volumes left out (leave one patient out)"
        if dataset.leave_one_patient_out
        else "the database and the queries are those of the data set's split"
    )
    names = ", ".join(f"`{root.resolve().name}`" for root in dataset.roots)
    yield f"Data: {names}; {mode}."
    yield ""
    rows = []
    for role, chosen in (
        ("database", [source for source in results.sources if source.is_database]),
        ("queries", [source for source in results.sources if source.is_query]),
    ):
        own = [volume for source in chosen for volume in volumes[source.name]]
        slices, blank = sum(volume.slice_count for volume in own), sum(volume.blank_count for volume in own)
        rows.append([role, f"{len(chosen):,}", f"{len(own):,}", f"{slices:,}", f"{blank:,}"])
    yield from table(["", "cases", "volumes", "slices", "of them blank"], rows)
    yield (
        "A case is a file, or a folder of one series, as in the paper: one that holds several volumes (the protocols "
        "of a 4-D file) is one case, and each of its volumes a share of it. Blank slices neither vote nor are indexed."
    )
    yield ""
    yield from table(
        ["backbone", "dimension", "computed in", "smoothing (px)"],
        [
            [
                result.name,
                str(result.backbone.dimension),
                str(result.numerics),
                f"{results.settings.policy.smoothing_px:g}",
            ]
            for result in results.backbones
        ],
    )


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    if not problems:
        return
    yield f"## What could not be used ({len(problems)})"
    yield ""
    yield from (f"- `{problem.path}`: {problem.reason}" for problem in problems)
    yield ""


def _summary(results: Results) -> Iterator[str]:
    yield "## Summary"
    yield ""
    yield f"Recall of the first match, every slice voting (`{ALL}`), and the best column of each row."
    yield ""
    rows = []
    for row in results.recall:
        if row.label in (MEAN, OVERALL):
            known = {name: value for name, value in row.values.items() if value is not None and name != SLICEWISE}
            best = max(known, key=lambda name: known[name], default="")
            shown = f"{_value(known.get(best))} ({best})" if best else "–"
            rows.append([row.level, row.label, row.index, row.backbone, _value(row.values[ALL]), shown])
    yield from table(["level", "", "index", "backbone", ALL, "best"], rows)


def _level(results: Results, level: str, figures: Sequence[Path]) -> Iterator[str]:
    classes = results.classes(level)
    yield f"## {_TITLES[level]}"
    yield ""
    names = sorted({*classes.database, *classes.queries})
    yield from table(
        ["class", "database volumes", "query cases"],
        [[name, str(classes.database.get(name, 0)), str(classes.queries.get(name, 0))] for name in names],
    )
    if classes.unfindable:
        other = " of another patient" if results.dataset.leave_one_patient_out else ""
        cases = sum(classes.queries[name] for name in classes.unfindable)
        yield (
            f"**No database volume{other}** for {', '.join(classes.unfindable)} ({cases} cases): these cannot be found "
            "and are in no mean and in no precision."
        )
        yield ""
    if classes.unasked:
        yield f"In the database without a query: {', '.join(classes.unasked)}."
        yield ""
    for title, rows in (("Recall", results.recall), ("Precision", results.precision)):
        yield f"### {title}"
        yield ""
        yield from _measured(
            results, [row for row in rows if row.level == level and row.label not in classes.unfindable]
        )
    for path in figures:
        if path.name.startswith(f"confusion_{level}_"):
            yield f"![confusion]({path.name})"
            yield ""


def _measured(results: Results, rows: Sequence[Row]) -> list[str]:
    schemes = [scheme.name for scheme in results.schemes]
    return table(
        ["class", "index", "backbone", *schemes],
        [[row.label, row.index, row.backbone, *(_value(row.values[name]) for name in schemes)] for row in rows],
    )


def _spread(results: Results, figures: Sequence[Path]) -> Iterator[str]:
    level = results.dataset.levels[-1]
    chosen = [path for path in figures if path.name == f"recall_{level}.png"]
    if chosen:
        yield "## Median and maximum"
        yield ""
        yield (
            f"Recall by {_TITLES[level].lower()} over all indexes and the paper's aggregations (Fig. 3 of the paper; "
            "without the slice-wise baseline)."
        )
        yield ""
        yield f"![median and maximum]({chosen[0].name})"
        yield ""


def _comparison(results: Results, compared: Sequence[Compared]) -> Iterator[str]:
    dataset = results.dataset
    if not dataset.tasks:
        return
    yield "## Beside the paper"
    yield ""
    if not compared:
        yield (
            "The paper's figures are of the Decathlon alone, in its own split, by HNSW and LSH, and by body region: "
            "beside this evaluation they would say nothing."
        )
        yield ""
        return
    absent = [task.folder for task in TASKS if task not in dataset.tasks]
    if absent:
        yield (
            f"**Not the paper's data set**: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not there. The "
            "fewer there are to be confused, the easier."
        )
        yield ""
    database = sum(source.is_database for source in results.sources)
    queries = sum(source.is_query for source in results.sources)
    theirs = [sum(task.database_cases for task in TASKS), sum(task.query_cases for task in TASKS)]
    yield f"Cases here: {database} in the database, {queries} queries; the paper's: {theirs[0]} and {theirs[1]}."
    yield ""
    others = [result.name for result in results.backbones if result.backbone.name not in PAPER_EMBEDDINGS]
    if others:
        yield (
            f"**Not the paper's backbone**: {', '.join(others)} is none of the paper's five embeddings; beside it "
            f"stands the {MEAN_EMBEDDING}."
        )
        yield ""
    rows = []
    for entry in compared:
        head = [entry.body_region, entry.index]
        ours = [_value(own) for own, _ in entry.values.values()]
        paper = [_value(value) for _, value in entry.values.values()]
        difference = ["–" if own is None else f"{own - value:+.3f}" for own, value in entry.values.values()]
        rows += [
            [*head, entry.backbone, *ours],
            [*head, f"paper: {entry.embedding}", *paper],
            [*head, "difference", *difference],
        ]
    yield from table(["body region", "index", "", *compared[0].values], rows)


def _agreement(results: Results) -> Iterator[str]:
    if not results.has_exact:
        return
    yield "## Agreement with exact search"
    yield ""
    rows = []
    for index in results.indexes:
        for result in results.backbones:
            agreement = result.outcomes.agreements[index]
            slices, volumes = max(1, agreement.slices), max(1, agreement.volumes)
            rows.append(
                [
                    index,
                    result.name,
                    f"{agreement.slices:,}",
                    f"{agreement.as_near / slices:.4f}",
                    f"{agreement.exhaustive / slices:.3f}",
                    f"{agreement.same_first_match / volumes:.4f}",
                ]
            )
    yield from table(
        ["index", "backbone", "slices", "recall@1 by distance", "compared exhaustively", f"same first match ({ALL})"],
        rows,
    )


def _times(results: Results) -> Iterator[str]:
    yield "## Times"
    yield ""
    for result in results.backbones:
        yield (
            f"{result.name}: {result.times.embedded_slices:,} slices embedded, "
            f"{result.times.reused_slices:,} taken from an earlier run. Stages overlap."
        )
        yield ""
        rows = [
            [stage, f"{seconds:.2f}", f"{1000 * seconds / slices:.2f}" if slices else "–"]
            for stage, seconds, slices in account(result)
        ]
        yield from table(["stage", "seconds", "ms a slice"], rows)
        ratio = bare_ratio(result)
        if ratio is not None:
            yield (
                f"The whole evaluation took {ratio:.2f} times the bare embedding, which was measured in between on "
                f"{result.bare.measured_slices:,} prepared slices of this run. Loading the backbone and drawing the "
                "figures are in neither."
            )
            yield ""


def _meaning(results: Results) -> Iterator[str]:
    yield "## What the columns mean"
    yield ""
    yield from (f"- `{scheme.name}`: {scheme.meaning}" for scheme in results.schemes)
    yield ""
    yield (
        "Recall of a class: the share of its cases whose first match has its label. Precision: the share of the cases "
        f"with a first match of the class that are of it. `{MEAN}`: the mean over the classes. `{OVERALL}`: all cases "
        "together."
    )
    yield ""
    best = [results.best_variant(result.name) for result in results.backbones]
    yield (
        "The confusion is shown for the variant with the best mean recall of body regions: "
        + "; ".join(_named(variant) for variant in best)
        + "."
    )


def _named(variant: Variant) -> str:
    return f"{variant.backbone}, {variant.index}, `{variant.scheme}`"
