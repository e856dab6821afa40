"""The machine-readable tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from slicevote_server.evaluation.backbone_run import BackboneResult
from slicevote_server.evaluation.comparison import Compared
from slicevote_server.evaluation.metrics import NO_MATCH_SHOWN
from slicevote_server.evaluation.outcomes import NO_MATCH
from slicevote_server.evaluation.results import Results, Row, Variant

RECALL, PRECISION, CONFUSION = "recall.tsv", "precision.tsv", "confusion.tsv"
AGREEMENT, TIMINGS, COMPARISON = "index_agreement.tsv", "timings.tsv", "paper_comparison.tsv"


def write_tables(results: Results, compared: Sequence[Compared], folder: Path) -> list[Path]:
    """Writes all tables and gives their files."""
    schemes = [scheme.name for scheme in results.schemes]
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[str]]]] = {
        RECALL: (("level", "class", "index", "backbone", *schemes), _measured(results.recall, schemes)),
        PRECISION: (("level", "class", "index", "backbone", *schemes), _measured(results.precision, schemes)),
        CONFUSION: (("level", "index", "backbone", "scheme", "class", "found", "cases"), _confusions(results)),
        AGREEMENT: (
            (
                "index",
                "backbone",
                "slices",
                "recall_at_1",
                "same_slice",
                "compared_exhaustively",
                "volumes",
                "same_first_match",
            ),
            _agreements(results),
        ),
        TIMINGS: (("backbone", "stage", "seconds", "slices", "ms_per_slice"), _timings(results.backbones)),
        COMPARISON: (
            ("body_region", "index", "backbone", "paper_embedding", "scheme", "ours", "paper", "difference"),
            _comparisons(compared),
        ),
    }
    if not results.has_exact:
        del tables[AGREEMENT]
        (folder / AGREEMENT).unlink(missing_ok=True)
    if not compared:
        del tables[COMPARISON]
        (folder / COMPARISON).unlink(missing_ok=True)
    for name, (header, rows) in tables.items():
        write_tsv(folder / name, header, rows)
    return [folder / name for name in tables]


def write_tsv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table: tab-separated, UTF-8, names in the first line."""
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")


def figure(value: float | None, digits: int = 4) -> str:
    """Writes a number; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def account(result: BackboneResult) -> list[tuple[str, float, int]]:
    """Gives stage, seconds and slices of everything that took time with a backbone."""
    times = result.times
    embedded = times.embedded_slices
    searched: Mapping[str, int] = {f"search {index}": count for index, count in times.searched_slices.items()}
    rows = [(stage, seconds, searched.get(stage, embedded)) for stage, seconds in times.seconds.items()]
    rows.append(("whole evaluation", result.wall_s, embedded))
    bare_s = result.bare.estimate_s(embedded)
    if bare_s is not None and embedded:
        rows.append(("bare embedding (estimate)", bare_s, embedded))
    return rows


def bare_ratio(result: BackboneResult) -> float | None:
    """Gives the whole over the bare embedding; None where an earlier run's embeddings were used."""
    bare_s = result.bare.estimate_s(result.times.embedded_slices)
    return None if not bare_s or result.times.reused_slices else result.wall_s / bare_s


def _measured(rows: Iterable[Row], schemes: Sequence[str]) -> Iterator[Sequence[str]]:
    for row in rows:
        yield (row.level, row.label, row.index, row.backbone, *(figure(row.values[name]) for name in schemes))


def _confusions(results: Results) -> Iterator[Sequence[str]]:
    for level in results.dataset.levels:
        for index in results.indexes:
            for result in results.backbones:
                for scheme in results.schemes:
                    variant = Variant(result.name, index, scheme.name)
                    for (label, found), cases in sorted(results.confusion(level, variant).items()):
                        shown = NO_MATCH_SHOWN if found == NO_MATCH else found
                        yield (level, index, variant.backbone, scheme.name, label, shown, f"{float(cases):.6g}")


def _agreements(results: Results) -> Iterator[Sequence[str]]:
    for index in results.indexes:
        for result in results.backbones:
            agreement = result.outcomes.agreements[index]
            slices, volumes = max(1, agreement.slices), max(1, agreement.volumes)
            yield (
                index,
                result.name,
                str(agreement.slices),
                figure(agreement.as_near / slices, 5),
                figure(agreement.same_slice / slices, 5),
                figure(agreement.exhaustive / slices, 5),
                str(agreement.volumes),
                figure(agreement.same_first_match / volumes, 5),
            )


def _timings(backbones: Iterable[BackboneResult]) -> Iterator[Sequence[str]]:
    for result in backbones:
        name, times = result.name, result.times
        for stage, seconds, slices in account(result):
            yield (name, stage, figure(seconds, 3), str(slices), figure(1000 * seconds / slices if slices else None, 3))
        yield (name, "slices embedded", "", str(times.embedded_slices), "")
        yield (name, "slices reused", "", str(times.reused_slices), "")
        ratio = bare_ratio(result)
        yield (name, "whole / bare embedding", figure(ratio, 3), str(result.bare.measured_slices), "")


def _comparisons(compared: Iterable[Compared]) -> Iterator[Sequence[str]]:
    for entry in compared:
        for scheme, (ours, paper) in entry.values.items():
            difference = "" if ours is None else f"{ours - paper:+.4f}"
            yield (
                entry.body_region,
                entry.index,
                entry.backbone,
                entry.embedding,
                scheme,
                figure(ours),
                figure(paper, 3),
                difference,
            )
