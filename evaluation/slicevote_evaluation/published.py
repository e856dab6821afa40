"""What the paper published: its ten tasks (Table I), its schemes, and its body-region recall (Table II)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

MODALITY, BODY_REGION, ORGAN = "modality", "body_region", "organ"
LEVELS = (MODALITY, BODY_REGION, ORGAN)
"""What a label can describe, from coarse to fine. Also the names of the labels."""

TABLE_FILE = "published_body_region_recall.tsv"

MEAN_EMBEDDING = "mean of the paper's five"
"""What a backbone that the paper did not use is compared with."""


@dataclass(frozen=True)
class Task:
    """A task of the Medical Segmentation Decathlon, as labelled in Table I.

    Attributes:
        folder: Name of its folder.
        labels: Modality, body region and organ.
        database_cases: Cases in the paper's database (imagesTr).
        query_cases: Cases among the paper's queries (imagesTs).
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
"""The paper's embedding that each of our backbones corresponds to. The paper does not state the sizes."""


@cache
def published_recall() -> pd.DataFrame:
    """Return Table II, one row per value: body_region, index, embedding, scheme, recall."""
    with resources.as_file(resources.files(__package__).joinpath(TABLE_FILE)) as path:
        table = pd.read_csv(path, sep="\t")
    table["body_region"] = table["body_region"].str.lower()
    return table.melt(["body_region", "index", "embedding"], var_name="scheme", value_name="recall")


@cache
def paper_schemes() -> tuple[str, ...]:
    """Return the names of the paper's schemes, in its order."""
    return tuple(published_recall()["scheme"].unique())
