"""The tables of an evaluation: recall and precision (paper, section III), confusion, agreement, from two tidy frames.

A case is right if its first match has its label. Means leave out classes that cannot be found: those without a volume
in the database or, leaving one patient out, without one of another patient. Their recall is 0 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan

import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from slicevote_server.archive.interface import Index
from slicevote_server.backbone import Backbone
from slicevote_server.runtime import Numerics

from slicevote_evaluation.datasets import Dataset
from slicevote_evaluation.embeddings import EmbeddedCases
from slicevote_evaluation.matching import NOTHING, Matches
from slicevote_evaluation.published import (
    BODY_REGION,
    MEAN_EMBEDDING,
    PAPER_EMBEDDINGS,
    paper_schemes,
    published_recall,
)
from slicevote_evaluation.schemes import SLICE_WISE, Scheme

MEAN = "(mean of classes)"
"""Row of the tables: the mean over the classes that can be found."""

OVERALL = "(all cases)"
"""Row of the tables: all cases of the classes that can be found."""

ROW = ["level", "class", "index", "backbone"]
"""Columns that name a row of the tables."""

VARIANT = ["index", "backbone", "scheme"]
"""Columns that name one way to search."""

_DECIMALS = 12  # thirds of a case do not add up exactly


@dataclass(frozen=True)
class EvaluatedBackbone:
    """What was found with one backbone.

    Attributes:
        name: Its name in the tables: the backbone's name, and its numerics where several are compared.
        backbone: The backbone.
        numerics: How it was computed.
        embedded: The cases as they were embedded.
        matches: What they found.
    """

    name: str
    backbone: Backbone
    numerics: Numerics
    embedded: EmbeddedCases
    matches: Matches


@dataclass(frozen=True)
class Results:
    """All results of an evaluation.

    Attributes:
        dataset: What was evaluated.
        indexes: Where slices were looked up.
        schemes: How their hits voted.
        backbones: What was found with each backbone.
    """

    dataset: Dataset
    indexes: tuple[Index, ...]
    schemes: tuple[Scheme, ...]
    backbones: tuple[EvaluatedBackbone, ...]

    @cached_property
    def matches(self) -> pd.DataFrame:
        """What every case found: the columns of `Matches.matches`, and `backbone`."""
        return pd.concat([entry.matches.matches.assign(backbone=entry.name) for entry in self.backbones])

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How the indexes agree: the columns of `Matches.agreement`, and `backbone`."""
        return pd.concat([entry.matches.agreement.assign(backbone=entry.name) for entry in self.backbones])

    @cached_property
    def cases(self) -> pd.DataFrame:
        """One row for every case that could be read, by name: labels, patient, roles, and volumes and slices in it."""
        contents = self.backbones[0].embedded.contents
        rows = [
            {
                "case": case.name,
                **case.labels,
                "patient": case.patient,
                "is_database": case.is_database,
                "is_query": case.is_query,
                "volumes": len(volumes),
                "indexed_volumes": sum(bool(volume.indices) for volume in volumes),
                "slices": sum(len(volume.positions_mm) for volume in volumes),
                "blank_slices": sum(volume.blank_count for volume in volumes),
            }
            for case in self.dataset.cases
            if case.name in contents
            for volumes in [contents[case.name].volumes]
        ]
        return pd.DataFrame(rows).set_index("case")

    def classes(self, level: str) -> pd.DataFrame:
        """Return the classes of a level in order: volumes in the database, cases among the queries, findable or not."""
        queries = self.cases[self.cases["is_query"]]
        database = self.cases[self.cases["is_database"] & (self.cases["indexed_volumes"] > 0)]
        patients = database.groupby(level)["patient"].agg(set)
        findable = [
            bool(patients.get(label, set()) - ({patient} if self.dataset.leave_one_patient_out else set()))
            for label, patient in zip(queries[level], queries["patient"], strict=True)
        ]
        table = pd.DataFrame(
            {
                "database": database.groupby(level)["indexed_volumes"].sum(),
                "queries": queries.groupby(level).size(),
                "findable": pd.Series(findable, index=queries.index).groupby(queries[level]).any(),
            }
        )
        return table.fillna({"database": 0, "queries": 0, "findable": False}).astype(
            {"database": int, "queries": int, "findable": bool}
        )

    def labelled(self, level: str) -> pd.DataFrame:
        """Return the matches with the labels of one level: `true`, of the case, and `found`, of its match."""
        labels = self.cases[level].to_dict()
        return self.matches.assign(
            true=self.matches["case"].map(labels), found=self.matches["match"].map({**labels, NOTHING: NOTHING})
        )

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Recall and precision of every class, of their mean and of all cases, by level, index, backbone and scheme."""
        rows = []
        for level in self.dataset.levels:
            classes = self.classes(level)
            findable = list(classes.index[classes["findable"]])
            labelled = self.labelled(level)
            for variant, cases in labelled[labelled["true"].isin(findable)].groupby(VARIANT, sort=False):
                for label, recall, precision in _scores(cases, findable):
                    rows.append((level, label, *variant, recall, precision))
        table = pd.DataFrame(rows, columns=["level", "class", *VARIANT, "recall", "precision"])
        return table.round(_DECIMALS)

    def table(self, measure: str) -> pd.DataFrame:
        """Return "recall" or "precision" as in the paper: a row for every class, a column for every scheme.

        Rows have the index `ROW`; the cells of a class that cannot be found are NaN.
        """
        rows = []
        for level in self.dataset.levels:
            classes = self.classes(level)
            asked = classes[classes["queries"] > 0].sort_values("findable", ascending=False, kind="stable")
            rows += [
                (level, label, index.name, backbone.name)
                for label in (*asked.index, MEAN, OVERALL)
                for index in self.indexes
                for backbone in self.backbones
            ]
        wide = self.scores.pivot(index=ROW, columns="scheme", values=measure)
        return wide.reindex(
            index=pd.MultiIndex.from_tuples(rows, names=ROW), columns=[scheme.name for scheme in self.schemes]
        )

    def confusion(self, level: str) -> pd.DataFrame:
        """Return the number of cases by index, backbone, scheme, their class, and the class of what they found."""
        ordered = self.labelled(level).astype(
            {
                "index": pd.CategoricalDtype([index.name for index in self.indexes], ordered=True),
                "backbone": pd.CategoricalDtype([backbone.name for backbone in self.backbones], ordered=True),
                "scheme": pd.CategoricalDtype([scheme.name for scheme in self.schemes], ordered=True),
            }
        )
        return ordered.groupby([*VARIANT, "true", "found"], observed=True)["cases"].sum().reset_index()

    def spread(self, level: str) -> pd.DataFrame:
        """Return minimum, median and maximum of the recall by class and backbone (Fig. 3 of the paper).

        They are taken over all indexes and the paper's aggregations, without the slice-wise baseline.
        """
        aggregations = [name for name in paper_schemes() if name != SLICE_WISE]
        chosen = self.scores[(self.scores["level"] == level) & self.scores["scheme"].isin(aggregations)]
        return chosen.groupby(["class", "backbone"])["recall"].agg(["min", "median", "max"])

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """Our body-region recall beside the paper's; empty unless the data is the Decathlon in its own split.

        A backbone of the paper stands beside its own row, any other beside the mean of the paper's five.
        """
        columns = ["body_region", "index", "backbone", "paper_embedding", "scheme", "ours", "paper", "difference"]
        if not self.dataset.is_papers or BODY_REGION not in self.dataset.levels:
            return pd.DataFrame(columns=columns)
        recall = self.table("recall").loc[[BODY_REGION]].droplevel("level")
        ours = recall.melt(ignore_index=False, var_name="scheme", value_name="ours").reset_index()
        paper = published_recall()
        mean = paper.groupby(["body_region", "index", "scheme"], as_index=False)["recall"].mean()
        paper = pd.concat([paper, mean.assign(embedding=MEAN_EMBEDDING)]).rename(columns={"recall": "paper"})
        embeddings = {entry.name: PAPER_EMBEDDINGS.get(entry.backbone.name, MEAN_EMBEDDING) for entry in self.backbones}
        ours = ours.rename(columns={"class": "body_region"}).assign(embedding=ours["backbone"].map(embeddings))
        both = ours.merge(paper, on=["body_region", "index", "scheme", "embedding"])
        # In the order of the table of recall: all schemes of a row, then the next row.
        rows = {key: place for place, key in enumerate(recall.index)}
        place = [rows[key] for key in zip(both["body_region"], both["index"], both["backbone"], strict=True)]
        both = both.assign(place=place, difference=both["ours"] - both["paper"])
        return both.sort_values("place", kind="stable").rename(columns={"embedding": "paper_embedding"})[columns]

    @cached_property
    def index_agreement(self) -> pd.DataFrame:
        """How often every index finds what exact search finds, by index and backbone; empty without exact search."""
        sums = self.agreement.groupby(["index", "backbone"], sort=False).sum()
        per_slice = sums[["as_near", "same_slice", "exhaustive"]].div(sums["slices"].clip(lower=1), axis=0)
        shares = sums.assign(**per_slice, same_first_match=sums["same_first_match"] / sums["volumes"])
        rows = [
            (index.name, backbone.name)
            for index in self.indexes
            for backbone in self.backbones
            if (index.name, backbone.name) in shares.index
        ]
        return shares.loc[rows].rename(columns={"as_near": "recall_at_1", "exhaustive": "compared_exhaustively"})


def _scores(cases: pd.DataFrame, findable: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return class, recall and precision; NaN where there is no case, and where nothing was found to be of the class.

    Over all cases, precision is recall without the cases that found nothing.
    """
    true, found, weight = cases["true"], cases["found"], cases["cases"]
    precision, recall, _, _ = precision_recall_fscore_support(
        true, found, labels=findable, sample_weight=weight, average=None, zero_division=nan
    )
    answered = found != NOTHING
    overall = accuracy_score(true, found, sample_weight=weight)
    of_answered = (
        accuracy_score(true[answered], found[answered], sample_weight=weight[answered]) if answered.any() else nan
    )
    return [
        *zip(findable, recall, precision, strict=True),
        (MEAN, float(pd.Series(recall).mean()), float(pd.Series(precision).mean())),
        (OVERALL, float(overall), float(of_answered)),
    ]
