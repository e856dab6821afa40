"""Recall and precision of what the cases found (paper, section III).

A case is a true positive if the first match has its label. A class that no case of it could find, because the
database holds no volume of it (or, leaving patients out, none of another patient), is kept out of everything that is
averaged: its recall is 0 whatever is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from slicevote_server.evaluation.datasets import Source
from slicevote_server.evaluation.outcomes import NO_MATCH, Pair

MEAN = "(mean of classes)"
"""Row of the tables: the mean over the classes that can be found."""

OVERALL = "(all cases)"
"""Row of the tables: over all cases of classes that can be found."""

NO_MATCH_SHOWN = "(nothing)"
"""What a case that found nothing is shown to have found."""

Confusion = Mapping[tuple[str, str], Fraction]
"""Number of cases by label and by what they found."""


@dataclass(frozen=True)
class Classes:
    """The classes of one level.

    Attributes:
        findable: Those of the queries that can be found, in order.
        unfindable: Those of the queries that cannot.
        unasked: Those of the database that no query is of.
        database: Number of database volumes by class.
        queries: Number of query cases by class.
    """

    findable: tuple[str, ...]
    unfindable: tuple[str, ...]
    unasked: tuple[str, ...]
    database: Mapping[str, int]
    queries: Mapping[str, int]


def classes_of(
    level: str, sources: Sequence[Source], indexed: Mapping[str, int], *, leave_one_patient_out: bool
) -> Classes:
    """Says which classes there are.

    Args:
        level: What the labels are about.
        sources: Those that could be read.
        indexed: Number of database volumes with slices in the index, by the source's name.
        leave_one_patient_out: A case cannot find its own patient.
    """
    database: Counter[str] = Counter()
    patients: dict[str, set[str]] = {}
    for source in sources:
        if source.is_database and indexed.get(source.name):
            database[source.labels[level]] += indexed[source.name]
            patients.setdefault(source.labels[level], set()).add(source.patient)
    queries = Counter(source.labels[level] for source in sources if source.is_query)
    findable = {
        source.labels[level]
        for source in sources
        if source.is_query
        and patients.get(source.labels[level], set()) - ({source.patient} if leave_one_patient_out else set())
    }
    return Classes(
        findable=tuple(sorted(findable)),
        unfindable=tuple(sorted(set(queries) - findable)),
        unasked=tuple(sorted(set(database) - set(queries))),
        database=database,
        queries=queries,
    )


def confusion(counts: Mapping[Pair, Fraction | int], place: int) -> Confusion:
    """Counts by the labels of one level.

    Args:
        counts: By the labels of all levels.
        place: Which level.
    """
    table: dict[tuple[str, str], Fraction] = {}
    for (labels, found), count in counts.items():
        pair = (labels[place], NO_MATCH if found is None else found[place])
        table[pair] = table.get(pair, Fraction(0)) + count
    return table


def recall(table: Confusion, findable: Collection[str]) -> dict[str, float | None]:
    """Gives the recall of every class, of their mean, and of all cases; None where there is no case."""
    values = {label: _ratio(table.get((label, label)), _sum(table, true=[label])) for label in findable}
    right = sum((table.get((label, label), Fraction(0)) for label in findable), Fraction(0))
    return {**values, MEAN: _mean(values), OVERALL: _ratio(right, _sum(table, true=findable))}


def precision(table: Confusion, findable: Collection[str]) -> dict[str, float | None]:
    """Gives the precision of every class and of their mean; None where nothing was found to be of the class.

    Over all cases it is the recall, with cases that found nothing left out.
    """
    kept = {pair: count for pair, count in table.items() if pair[0] in findable}
    values = {
        label: _ratio(
            kept.get((label, label)), sum((count for (_, found), count in kept.items() if found == label), Fraction(0))
        )
        for label in findable
    }
    right = sum((kept.get((label, label), Fraction(0)) for label in findable), Fraction(0))
    found = sum((count for (_, label), count in kept.items() if label != NO_MATCH), Fraction(0))
    return {**values, MEAN: _mean(values), OVERALL: _ratio(right, found)}


def _sum(table: Confusion, true: Collection[str]) -> Fraction:
    return sum((count for (label, _), count in table.items() if label in true), Fraction(0))


def _ratio(part: Fraction | None, whole: Fraction) -> float | None:
    return float((part or Fraction(0)) / whole) if whole else None


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None
