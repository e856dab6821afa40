"""The paper's figures: the confusion of organs (Fig. 2), and the median and maximum of recall (Fig. 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from slicevote_server.evaluation.metrics import NO_MATCH_SHOWN
from slicevote_server.evaluation.outcomes import NO_MATCH
from slicevote_server.evaluation.published import BODY_REGION, ORGAN
from slicevote_server.evaluation.results import Results, Variant

# Okabe and Ito's colours, which colour-blind people tell apart; dark enough for text.
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
    """Draws every figure as PNG and SVG and gives the files."""
    written: list[Path] = []
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "slicevote"}):
        for result in results.backbones:
            variant = results.best_variant(result.name)
            for level in results.dataset.levels:
                figure = _confusion_figure(results, level, variant)
                written += _save(figure, folder / f"confusion_{level}_{variant.backbone}")
        level = results.dataset.levels[-1]
        written += _save(_spread_figure(results, level), folder / f"recall_{level}")
    return written


def _save(figure: Figure, stem: Path) -> list[Path]:
    FigureCanvasAgg(figure)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in _FORMATS]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white", metadata=metadata)
    return paths


def _regions(results: Results) -> dict[str, str]:
    """Gives the body region that most volumes of an organ are labelled with."""
    if BODY_REGION not in results.dataset.levels or ORGAN not in results.dataset.levels:
        return {}
    votes: dict[str, Counter[str]] = {}
    for source in results.sources:
        votes.setdefault(source.labels[ORGAN], Counter())[source.labels[BODY_REGION]] += 1
    return {
        organ: sorted(counter, key=lambda region: (-counter[region], region))[0] for organ, counter in votes.items()
    }


def _region_of(results: Results, level: str) -> dict[str, str]:
    """Gives the body region of every class of a level, where that makes sense."""
    if level == ORGAN:
        return _regions(results)
    if level == BODY_REGION:
        return {source.labels[level]: source.labels[level] for source in results.sources}
    return {}


def _ordered(labels: Sequence[str], regions: Mapping[str, str]) -> list[str]:
    known = list(REGION_COLOURS)
    place = {region: known.index(region) if region in known else len(known) for region in regions.values()}
    return sorted(
        labels, key=lambda label: (place.get(regions.get(label, ""), len(known)), regions.get(label, ""), label)
    )


def _colour(region: str) -> str:
    return REGION_COLOURS.get(region, OTHER_COLOUR)


def _confusion_figure(results: Results, level: str, variant: Variant) -> Figure:
    """Draws true classes as rows, what was found as columns; a cell's depth is the share of its row.

    Cells within one body region have the region's colour, those across regions are grey.
    """
    table = results.confusion(level, variant)
    regions = _region_of(results, level)
    true = _ordered(list({label for label, _ in table}), regions)
    found_labels = {found for _, found in table if found != NO_MATCH}
    columns = _ordered(list(found_labels | set(true)), regions)
    if any(found == NO_MATCH for _, found in table):
        columns.append(NO_MATCH)
    counts = np.array([[float(table.get((row, column), 0)) for column in columns] for row in true])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    cell = 0.34 if len(columns) > 6 else 0.62
    figure = Figure(figsize=(2.6 + cell * len(columns), 1.6 + cell * len(true)))
    axes = figure.add_subplot()
    picture = _cell_colours(shares, true, columns, regions)
    axes.imshow(picture, aspect="equal")
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(
            column,
            row,
            _count(counts[row, column]),
            ha="center",
            va="center",
            fontsize=7 if len(columns) > 6 else 9,
            color="white" if picture[row, column] @ _LUMINANCE < 0.5 else "black",
        )
    _name_ticks(axes, true, columns, regions)
    axes.set_xlabel("label of the first match")
    axes.set_ylabel("label of the query")
    axes.set_title(
        f"Cases by {level.replace('_', ' ')}\n{variant.backbone}, {variant.index}, {variant.scheme}",
        fontsize=10,
        pad=10,
    )
    shown = list(dict.fromkeys(regions[label] for label in columns if label in regions))
    if level == ORGAN and shown:
        handles = [Patch(color=_colour(region), label=region) for region in shown]
        handles.append(Patch(color="#888888", label="across regions"))
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, title="body region")
    return figure


def _cell_colours(
    shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], regions: Mapping[str, str]
) -> NDArray[np.float64]:
    picture = np.ones((*shares.shape, 3))
    for row, column in zip(*np.nonzero(shares), strict=True):
        own, other = regions.get(rows[row]), regions.get(columns[column])
        same = own == other if regions else rows[row] == columns[column]
        colour = np.array(to_rgb((_colour(own) if own else "#0072B2") if same else "#666666"))
        depth = 0.15 + 0.85 * shares[row, column]
        picture[row, column] = 1 - depth * (1 - colour)
    return picture


def _name_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str], regions: Mapping[str, str]) -> None:
    axes.set_xticks(range(len(columns)), [column or NO_MATCH_SHOWN for column in columns], rotation=60, ha="right")
    for tick in axes.get_xticklabels():
        tick.set_rotation_mode("anchor")
    axes.set_yticks(range(len(rows)), rows)
    for ticks, labels in ((axes.get_xticklabels(), columns), (axes.get_yticklabels(), rows)):
        for tick, label in zip(ticks, labels, strict=True):
            tick.set_color(_colour(regions[label]) if label in regions else OTHER_COLOUR)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDDDDD", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _count(cases: float) -> str:
    return f"{cases:.0f}" if cases == round(cases) else f"{cases:.1f}" if cases >= 0.1 else f"{cases:.2f}"


def _spread_figure(results: Results, level: str) -> Figure:
    """Draws median (left) and maximum (right) of recall over indexes and aggregations, a bar a backbone."""
    regions = _region_of(results, level)
    labels = _ordered(results.classes(level).findable, regions)
    backbones = [result.name for result in results.backbones]
    thickness = 0.8 / max(1, len(backbones))
    height = 1.5 + max(0.26, 0.15 * len(backbones)) * max(1, len(labels))
    figure = Figure(figsize=(9.5, height))
    panels = figure.subplots(1, 2, sharey=True)
    for place, (axes, title) in enumerate(zip(panels, ("median", "maximum"), strict=True)):
        for number, backbone in enumerate(backbones):
            spreads = [results.spread(level, label, backbone) for label in labels]
            values = [0.0 if spread is None else spread[place] for spread in spreads]
            offsets = np.arange(len(labels)) + (number - (len(backbones) - 1) / 2) * thickness
            colour = BACKBONE_COLOURS[number % len(BACKBONE_COLOURS)]
            axes.barh(offsets, values, height=0.92 * thickness, color=colour, label=backbone)
            for offset, value in zip(offsets, values, strict=True):
                axes.text(value + 0.015, offset, f"{value:.2f}", va="center", fontsize=7)
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("recall")
        axes.set_title(f"{title} over indexes and aggregations", fontsize=10)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    for tick, label in zip(panels[0].get_yticklabels(), labels, strict=True):
        tick.set_color(_colour(regions[label]) if label in regions else OTHER_COLOUR)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=min(4, max(1, len(names))), frameon=False)
    figure.tight_layout(rect=(0, 0.3 / height * (1 + (len(names) - 1) // 4), 1, 1))
    return figure
