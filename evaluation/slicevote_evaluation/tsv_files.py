"""Writing tables as TSV files: tab-separated, UTF-8, names in the first line."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from slicevote_evaluation.matching import NOTHING
from slicevote_evaluation.tables import VARIANT, Results

RECALL, PRECISION, CONFUSION = "recall.tsv", "precision.tsv", "confusion.tsv"
AGREEMENT, COMPARISON = "index_agreement.tsv", "paper_comparison.tsv"

NOTHING_SHOWN = "(nothing)"
"""How a match is shown where there is none."""


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write all tables and return their files; a table that does not apply is removed."""
    confusion = pd.concat([results.confusion(level).assign(level=level) for level in results.dataset.levels])
    confusion["found"] = confusion["found"].replace({NOTHING: NOTHING_SHOWN})
    confusion = confusion[["level", *VARIANT, "true", "found", "cases"]].rename(columns={"true": "class"})
    comparison = results.comparison.copy()
    for column, kind in (("ours", ".4f"), ("paper", ".3f"), ("difference", "+.4f")):
        comparison[column] = [f"{value:{kind}}" if pd.notna(value) else "" for value in comparison[column]]
    tables: dict[str, tuple[pd.DataFrame, str | None]] = {
        RECALL: (results.table("recall").reset_index(), "%.4f"),
        PRECISION: (results.table("precision").reset_index(), "%.4f"),
        CONFUSION: (confusion, "%.6g"),
        AGREEMENT: (results.index_agreement.reset_index(), "%.5f"),
        COMPARISON: (comparison, None),
    }
    written = []
    for name, (table, digits) in tables.items():
        path = folder / name
        if table.empty and name in (AGREEMENT, COMPARISON):
            path.unlink(missing_ok=True)
            continue
        table.to_csv(path, sep="\t", index=False, float_format=digits, lineterminator="\n", quoting=csv.QUOTE_NONE)
        written.append(path)
    return written
