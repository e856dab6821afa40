"""Our body-region recall beside the paper's (Table II)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from slicevote_server.evaluation.published import BODY_REGION, PAPER_EMBEDDINGS, published_recall
from slicevote_server.evaluation.results import Results

MEAN_EMBEDDING = "mean of the paper's five"

NUMERICS_MARK = "+"
"""Stands, in a name of the tables, between a backbone and what computed it, where several numerics are compared."""


@dataclass(frozen=True)
class Compared:
    """One of our rows beside one of the paper's.

    Attributes:
        body_region: The class.
        index: Where slices were looked up.
        backbone: Ours.
        embedding: The paper's, or `MEAN_EMBEDDING`.
        values: Ours and the paper's by scheme.
    """

    body_region: str
    index: str
    backbone: str
    embedding: str
    values: Mapping[str, tuple[float | None, float]]


def compare(results: Results) -> list[Compared]:
    """Puts our rows beside the paper's: a backbone of the paper beside its own, any other beside the mean of the five.

    Gives nothing where the data is not the Decathlon in its own split: the paper says nothing of it.
    """
    dataset = results.dataset
    if dataset.has_manifest or dataset.leave_one_patient_out or not dataset.tasks:
        return []
    compared = []
    for row in results.recall:
        embedding = PAPER_EMBEDDINGS.get(row.backbone.partition(NUMERICS_MARK)[0])
        beside = [
            entry.recall
            for entry in published_recall()
            if row.level == BODY_REGION
            and (entry.body_region, entry.index) == (row.label, row.index)
            and embedding in (None, entry.embedding)
        ]
        if beside:
            values = {scheme: (row.values[scheme], fmean(entry[scheme] for entry in beside)) for scheme in beside[0]}
            compared.append(Compared(row.label, row.index, row.backbone, embedding or MEAN_EMBEDDING, values))
    return compared
