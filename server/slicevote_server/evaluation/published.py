"""What the paper gives: its ten tasks (Table I), its columns, and its body-region recall (Table II)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

MODALITY, BODY_REGION, ORGAN = "modality", "body_region", "organ"
LEVELS = (MODALITY, BODY_REGION, ORGAN)
"""What a label can be about, from coarse to fine; also the names of the labels."""

TABLE_FILE = "published_body_region_recall.tsv"


@dataclass(frozen=True)
class Task:
    """A task of the Medical Segmentation Decathlon as Table I labels it.

    Attributes:
        folder: Name of its folder.
        labels: Modality, body region and organ.
        database_cases: Cases of the paper's database (imagesTr).
        query_cases: Cases of the paper's queries (imagesTs).
    """

    folder: str
    labels: Mapping[str, str]
    database_cases: int
    query_cases: int


def _task(folder: str, organ: str, modality: str, body_region: str, cases: tuple[int, int]) -> Task:
    return Task(folder, {MODALITY: modality, BODY_REGION: body_region, ORGAN: organ}, *cases)


TASKS = (
    _task("Task01_BrainTumour", "brain", "MR", "head", (466, 266)),
    _task("Task02_Heart", "heart", "MR", "chest", (20, 10)),
    _task("Task03_Liver", "liver", "CT", "abdomen", (131, 70)),
    _task("Task04_Hippocampus", "hippocampus", "MR", "head", (260, 130)),
    _task("Task05_Prostate", "prostate", "MR", "pelvis", (32, 16)),
    _task("Task06_Lung", "lung", "CT", "chest", (63, 32)),
    _task("Task07_Pancreas", "pancreas", "CT", "abdomen", (281, 139)),
    _task("Task08_HepaticVessel", "hepatic vessel", "CT", "abdomen", (303, 140)),
    _task("Task09_Spleen", "spleen", "CT", "abdomen", (41, 20)),
    _task("Task10_Colon", "colon", "CT", "abdomen", (126, 64)),
)

PAPER_EMBEDDINGS: Mapping[str, str] = {
    "dreamsim-ensemble": "DreamSim",
    "dreamsim-dino-vitb16": "DreamSim",
    "dinov1-vits16": "DINOv1",
    "dinov1-vitb16": "DINOv1",
    "dinov2-vits14": "DINOv2",
    "dinov2-vitb14": "DINOv2",
    "radimagenet-resnet50": "ResNet50",
    "radimagenet-swin": "SwinTransformer",
}
"""Which embedding of the paper a backbone of ours is, by the exporter's name. The paper does not give the sizes."""


@dataclass(frozen=True)
class PublishedRecall:
    """A row of Table II: recall by scheme."""

    body_region: str
    index: str
    embedding: str
    recall: Mapping[str, float]


@cache
def published_recall() -> tuple[PublishedRecall, ...]:
    """Reads Table II."""
    text = resources.files(__package__).joinpath(TABLE_FILE).read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return tuple(
        PublishedRecall(
            row.pop("body_region").lower(),
            row.pop("index"),
            row.pop("embedding"),
            {scheme: float(value) for scheme, value in row.items()},
        )
        for row in rows
    )


@cache
def paper_columns() -> tuple[str, ...]:
    """Gives the names of the paper's columns, in its order."""
    return tuple(published_recall()[0].recall)
