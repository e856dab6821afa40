"""The paper's figures: confusion matrices (Fig. 2) and recall by class (Fig. 3), drawn for the scheme `all`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from slicevote_evaluation.matching import NOTHING
from slicevote_evaluation.published import BODY_REGION, ORGAN
from slicevote_evaluation.schemes import ALL
from slicevote_evaluation.tables import Results
from slicevote_evaluation.tsv_files import NOTHING_SHOWN

# Okabe and Ito's colours, which colour-blind people can tell apart; dark enough for text.
REGION_COLOURS: Mapping[str, str] = {
    "head": "#0072B2",
    "pelvis": "#B5487F",
    "chest": "#C25700",
    "abdomen": "#00785A",
    "spine": "#8A6D00",
    "extremity": "#5C3A21",
}
OTHER_COLOUR = "#444444"
BACKBONE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_FORMATS = ("png", "svg")


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Draw every figure as PNG and SVG and return the files.

    All show the scheme `all` in the first index, whichever scheme did best.
    """
    written: list[Path] = []
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "slicevote"}):
        for level in results.dataset.levels:
            for backbone in results.backbones:
                figure = _confusion_figure(results, level, backbone.name)
                written += _save(figure, folder / f"confusion_{level}_{backbone.name}")
        level = results.dataset.levels[-1]
        written += _save(_recall_figure(results, level), folder / f"recall_{level}")
    return written


def _save(figure: Figure, stem: Path) -> list[Path]:
    FigureCanvasAgg(figure)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in _FORMATS]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white", metadata=metadata)
    return paths


def _regions(results: Results, level: str) -> dict[str, str]:
    """Return the body region of every class: of an organ, the one that most of its cases are labelled with."""
    if BODY_REGION not in results.dataset.levels or level not in (BODY_REGION, ORGAN):
        return {}
    return {str(label): str(own.mode()[0]) for label, own in results.cases.groupby(level)[BODY_REGION]}


def _ordered(labels: Sequence[str], regions: Mapping[str, str]) -> list[str]:
    """Return classes by body region, from head to foot, then by name."""
    known = list(REGION_COLOURS)

    def place(label: str) -> tuple[int, str, str]:
        region = regions.get(label, "")
        return known.index(region) if region in known else len(known), region, label

    return sorted(labels, key=place)


def _colour(label: str, regions: Mapping[str, str]) -> str:
    return REGION_COLOURS.get(regions.get(label, ""), OTHER_COLOUR)


def _confusion_figure(results: Results, level: str, backbone: str) -> Figure:
    """Draw true classes as rows and found classes as columns, in one order; a cell's depth is its share of the row.

    Cells within one body region have the colour of the region; those across regions are grey.
    """
    index = results.indexes[0].name
    table = results.confusion(level)
    shown = table[(table["index"] == index) & (table["backbone"] == backbone) & (table["scheme"] == ALL)]
    counts = shown.pivot(index="true", columns="found", values="cases")
    regions = _regions(results, level)
    rows = _ordered(list({*shown["true"], *shown["found"]} - {NOTHING}), regions)
    columns = [*rows, NOTHING] if NOTHING in counts.columns else rows
    cells = counts.reindex(index=rows, columns=columns).fillna(0.0).to_numpy(dtype=np.float64)
    cell = 0.34 if len(rows) > 6 else 0.62
    figure = Figure(figsize=(2.6 + cell * len(columns), 1.6 + cell * len(rows)))
    axes = figure.add_subplot()
    picture = _cell_colours(cells, rows, columns, regions)
    axes.imshow(picture, aspect="equal")
    for row, column in zip(*np.nonzero(cells), strict=True):
        axes.text(
            column,
            row,
            _count(cells[row, column]),
            ha="center",
            va="center",
            fontsize=7 if len(rows) > 6 else 9,
            color="white" if picture[row, column] @ _LUMINANCE < 0.5 else "black",
        )
    _label_ticks(axes, rows, columns, regions)
    for place in range(len(rows)):
        corner = (place - 0.5, place - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    axes.axvline(len(rows) - 0.5, color="black", linewidth=0.8)
    axes.set_xlabel("class of the first match")
    axes.set_ylabel("class of the query")
    axes.set_title(f"Cases by {level.replace('_', ' ')}\n{backbone}, {index}, every slice votes", fontsize=10, pad=10)
    present = list(dict.fromkeys(regions[label] for label in rows if label in regions))
    if level == ORGAN and present:
        handles = [Patch(color=REGION_COLOURS.get(region, OTHER_COLOUR), label=region) for region in present]
        handles.append(Patch(color="#888888", label="across regions"))
        handles.append(Patch(facecolor="white", edgecolor="black", label="right"))
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, title="body region")
    return figure


def _cell_colours(
    cells: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], regions: Mapping[str, str]
) -> NDArray[np.float64]:
    """Return the colour of every cell, float64 [rows, columns, 3]."""
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1e-12)
    picture = np.ones((*cells.shape, 3))
    for row, column in zip(*np.nonzero(cells), strict=True):
        true, found = rows[row], columns[column]
        related = regions[true] == regions.get(found) if regions else true == found
        colour = np.array(to_rgb((_colour(true, regions) if regions else "#0072B2") if related else "#666666"))
        picture[row, column] = 1 - (0.15 + 0.85 * shares[row, column]) * (1 - colour)
    return picture


def _label_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str], regions: Mapping[str, str]) -> None:
    axes.set_xticks(range(len(columns)), [column or NOTHING_SHOWN for column in columns], rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for tick, label in zip([*axes.get_xticklabels(), *axes.get_yticklabels()], [*columns, *rows], strict=True):
        tick.set_rotation_mode("anchor")
        tick.set_color(_colour(label, regions))
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDDDDD", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _count(cases: float) -> str:
    return f"{cases:.0f}" if abs(cases - round(cases)) < 1e-9 else f"{cases:.1f}" if cases >= 0.1 else f"{cases:.2f}"


def _recall_figure(results: Results, level: str) -> Figure:
    """Draw the recall of every class by `all`, a bar a backbone; a line and a tick show how far it depends on the rest.

    The line goes from the least to the greatest recall over all indexes and the paper's aggregations; the tick is the
    median.
    """
    index = results.indexes[0].name
    scores = results.scores
    recall = scores[(scores["level"] == level) & (scores["index"] == index) & (scores["scheme"] == ALL)]
    bars = recall.set_index(["class", "backbone"])["recall"]
    spread = results.spread(level)
    classes = results.classes(level)
    regions = _regions(results, level)
    labels = _ordered(list(classes.index[classes["findable"]]), regions)
    backbones = [entry.name for entry in results.backbones]
    thickness = 0.8 / len(backbones)
    height = 1.7 + max(0.3, 0.17 * len(backbones)) * max(1, len(labels))
    figure = Figure(figsize=(7.5, height))
    axes = figure.add_subplot()
    for number, backbone in enumerate(backbones):
        keys = pd.MultiIndex.from_product([labels, [backbone]])
        values = bars.reindex(keys).fillna(0.0).to_numpy()
        low, median, high = spread.reindex(keys).to_numpy().T
        places = np.arange(len(labels)) + (number - (len(backbones) - 1) / 2) * thickness
        colour = BACKBONE_COLOURS[number % len(BACKBONE_COLOURS)]
        axes.barh(places, values, height=0.92 * thickness, color=colour, alpha=0.75, label=backbone)
        axes.hlines(places, low, high, color="black", linewidth=1.0, label="" if number else "least to greatest")
        axes.plot(median, places, "|", color="black", markersize=7, label="" if number else "median")
        for place, value in zip(places, values, strict=True):
            axes.text(1.03, place, f"{value:.2f}", va="center", fontsize=7)
    axes.set_xlim(0, 1.1)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("recall")
    axes.set_title(f"Recall by {level.replace('_', ' ')}: {index}, every slice votes", fontsize=10)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_color(_colour(label, regions))
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda place: names[place] not in backbones)
    figure.legend(
        [handles[place] for place in order],
        [names[place] for place in order],
        loc="lower center",
        ncols=3,
        frameon=False,
        title="line and tick: over all indexes and the paper's aggregations",
        title_fontsize=8,
    )
    figure.tight_layout(rect=(0, (0.5 + 0.2 * (len(backbones) // 3)) / height, 1, 1))
    return figure
