"""All figures of an evaluation, ready to be written down: recall, precision, confusion, agreement, times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from slicevote_server.archive.interface import Index
from slicevote_server.evaluation.backbone_run import BackboneResult, EvaluationSettings
from slicevote_server.evaluation.datasets import Dataset, Source
from slicevote_server.evaluation.metrics import (
    MEAN,
    OVERALL,
    Classes,
    Confusion,
    classes_of,
    confusion,
    precision,
    recall,
)
from slicevote_server.evaluation.published import BODY_REGION, paper_columns
from slicevote_server.evaluation.schemes import SLICEWISE, Scheme

Measure = Callable[[Confusion, Collection[str]], dict[str, float | None]]


@dataclass(frozen=True)
class Row:
    """A row of the tables of recall or precision.

    Attributes:
        level: What the class is about.
        label: The class.
        index: Where slices were looked up.
        backbone: What embedded them.
        values: By scheme; None where there was no case.
    """

    level: str
    label: str
    index: str
    backbone: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Variant:
    """One way to search."""

    backbone: str
    index: str
    scheme: str


@dataclass(frozen=True)
class Results:
    """Everything that was found.

    Attributes:
        dataset: What was evaluated.
        settings: How.
        backbones: What every backbone gave.
    """

    dataset: Dataset
    settings: EvaluationSettings
    backbones: tuple[BackboneResult, ...]

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The columns."""
        return self.settings.schemes

    @property
    def indexes(self) -> tuple[str, ...]:
        """Names of the indexes."""
        return tuple(index.name for index in self.settings.indexes)

    @property
    def has_exact(self) -> bool:
        """Exact search is among the indexes, so that the others can be compared with it."""
        return Index.EXACT in self.settings.indexes

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources that could be read."""
        readable = self.backbones[0].volumes
        return tuple(source for source in self.dataset.sources if source.name in readable)

    def classes(self, level: str) -> Classes:
        """Gives the classes of a level."""
        volumes = self.backbones[0].volumes
        indexed = {source.name: sum(bool(v.indices) for v in volumes[source.name]) for source in self.sources}
        return classes_of(level, self.sources, indexed, leave_one_patient_out=self.dataset.leave_one_patient_out)

    def confusion(self, level: str, variant: Variant) -> Confusion:
        """Counts cases by their class and what they found."""
        result = next(entry for entry in self.backbones if entry.name == variant.backbone)
        counts = result.outcomes.counts[variant.index, variant.scheme]
        return confusion(counts, self.dataset.levels.index(level))

    @cached_property
    def recall(self) -> tuple[Row, ...]:
        """Recall of every class, and of all, for every index and backbone."""
        return tuple(self._rows(recall))

    @cached_property
    def precision(self) -> tuple[Row, ...]:
        """Precision of every class, and of all, for every index and backbone."""
        return tuple(self._rows(precision))

    def best_variant(self, backbone: str) -> Variant:
        """Gives the variant of a backbone with the best mean recall of body regions; of equal ones the first.

        The slice-wise baseline, which finds no volume, does not count. Without body regions it is the coarsest level.
        """
        level = BODY_REGION if BODY_REGION in self.dataset.levels else self.dataset.levels[0]
        means = {
            Variant(backbone, row.index, scheme): value
            for row in self.recall
            if (row.level, row.label, row.backbone) == (level, MEAN, backbone)
            for scheme, value in row.values.items()
            if value is not None and scheme != SLICEWISE
        }
        first = Variant(backbone, self.indexes[0], self.schemes[0].name)
        return max(means, key=lambda variant: means[variant], default=first)

    def spread(self, level: str, label: str, backbone: str) -> tuple[float, float] | None:
        """Gives median and maximum of the recall of a class over all indexes and the paper's aggregations (Fig. 3)."""
        values = [
            value
            for row in self.recall
            if (row.level, row.label, row.backbone) == (level, label, backbone)
            for scheme, value in row.values.items()
            if value is not None and scheme in paper_columns() and scheme != SLICEWISE
        ]
        return (median(values), max(values)) if values else None

    def _rows(self, measure: Measure) -> Iterator[Row]:
        for level in self.dataset.levels:
            classes = self.classes(level)
            measured = {
                (index, result.name, scheme.name): measure(
                    self.confusion(level, Variant(result.name, index, scheme.name)), classes.findable
                )
                for index in self.indexes
                for result in self.backbones
                for scheme in self.schemes
            }
            for label in (*classes.findable, *classes.unfindable, MEAN, OVERALL):
                for index in self.indexes:
                    for result in self.backbones:
                        name = result.name
                        values = {scheme.name: measured[index, name, scheme.name].get(label) for scheme in self.schemes}
                        yield Row(level, label, index, name, values)
