"""The whole evaluation beside an independent one: numpy, brute force, nothing of the engine."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import cv2
import nibabel
import numpy as np
import onnxruntime
import pytest

from tests.evaluation.conftest import read_tsv, svg_texts
from tests.evaluation.sets import write_protocols, write_task

TASKS = {  # modality, body region, organ: Table I
    "Task02_Heart": ("MR", "chest", "heart"),
    "Task03_Liver": ("CT", "abdomen", "liver"),
    "Task04_Hippocampus": ("MR", "head", "hippocampus"),
    "Task09_Spleen": ("CT", "abdomen", "spleen"),
}
LEVELS = ("modality", "body_region", "organ")
PAPER = (
    *("random_5", "random_10", "random_20", "random_40", "random_80"),
    *("every_3mm", "every_5mm", "every_7mm", "every_10mm", "every_12mm", "every_15mm"),
    *("every_3_slices", "every_5_slices", "every_10_slices", "all", "weighted", "slicewise"),
)
OURS = ("even_16", "summed_similarity", "neighbours_5", "late_interaction")


def read_slices(path: Path, modality: str) -> list[tuple[list[float], dict[int, np.ndarray]]]:
    """The protocols of a file: positions, and the grey pictures of the slices that are not blank."""
    image = nibabel.load(path)
    data = np.asarray(image.dataobj, np.float64)
    data = data[..., None] if data.ndim == 3 else data
    volumes = []
    for protocol in range(data.shape[3]):
        stack = data[..., protocol].transpose(2, 1, 0)  # written as axial, right to left, anterior to posterior
        count = len(stack)
        if modality == "CT":
            low, high = -1000.0, 1000.0
        else:
            middle = [(2 * part + 1) * count // 32 for part in range(16)] if count > 16 else range(count)
            low, high = np.percentile(stack[list(middle)].astype(np.float32), (0.5, 99.5))
        pictures = {}
        for index, values in enumerate(stack):
            grey = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
            if grey.max() - grey.min() < 1 / 255:
                continue
            large = cv2.resize(grey, (224, 224), interpolation=cv2.INTER_LINEAR)
            pictures[index] = cv2.GaussianBlur(large, (0, 0), 1.0)
        positions = [float(image.affine[2, 2]) * index for index in range(count)]
        volumes.append((positions, pictures))
    return volumes


def sample(scheme: str, positions: list[float]) -> list[int]:
    count = len(positions)
    kind, _, rest = scheme.partition("_")
    if kind == "random":
        wanted = min(int(rest), count)
        return list(np.random.Generator(np.random.PCG64(0)).choice(count, wanted, replace=False))
    if scheme.endswith("mm"):
        gap, chosen = float(rest[:-2]), set()
        for step in range(int((positions[-1] - positions[0]) / gap + 1e-6) + 1):
            target = positions[0] + step * gap
            chosen.add(min(range(count), key=lambda index: (round(abs(positions[index] - target), 6), index)))
        return sorted(chosen)
    if scheme.endswith("_slices"):
        return list(range(0, count, int(rest.split("_")[0])))
    if scheme == "even_16" and count > 16:
        return [int((part + 0.5) * count / 16) for part in range(16)]
    return list(range(count))


def first_match(scheme, positions, indices, similarity, owner, names):
    """Best volume of one query volume by exact search; `similarity` is [slices that are not blank, database slices]."""
    count = len(positions)
    chosen = set(sample(scheme, positions))
    votes, sums = defaultdict(float), defaultdict(float)
    for row, index in enumerate(indices):
        if index not in chosen:
            continue
        for hit in np.argsort(-similarity[row], kind="stable")[: 5 if scheme == "neighbours_5" else 1]:
            weight = 1.0
            if scheme == "weighted":
                weight = math.exp(-0.5 * ((index - (count - 1) / 2) / (count / 6)) ** 2)
            elif scheme == "summed_similarity":
                weight = float(np.clip(similarity[row, hit], 0, 1))
            votes[owner[hit]] += weight
            sums[owner[hit]] += float(similarity[row, hit])
    if not votes:
        return None
    best = sorted(votes, key=lambda volume: (-votes[volume], -sums[volume], names[volume]))
    if scheme == "late_interaction":
        scores = {v: sum(max(similarity[r, owner == v]) for r in range(len(indices))) for v in best[:50]}
        best = sorted(best[:50], key=lambda volume: -scores[volume])
    return best[0]


def independent(root: Path, backbone: Path) -> dict[str, dict[tuple[str, str], dict[str, float]]]:
    """Recall and precision of exact search by (level, class) and column."""
    session = onnxruntime.InferenceSession(str(backbone))
    volumes = []  # name, labels, is query, positions, indices, vectors, share
    for task, labels in TASKS.items():
        for split in ("imagesTr", "imagesTs"):
            for path in sorted((root / task / split).iterdir()):
                protocols = read_slices(path, labels[0])
                for number, (positions, pictures) in enumerate(protocols):
                    name = f"{root.name}/{task}/{split}/{path.name}" + (f":{number}" if len(protocols) > 1 else "")
                    vectors = session.run(None, {"slices": np.stack(list(pictures.values()))})[0]
                    share = 1 / len(protocols)
                    volumes.append((name, labels, split == "imagesTs", positions, list(pictures), vectors, share))
    database = sorted((volume for volume in volumes if not volume[2]), key=lambda volume: volume[0])
    names = [volume[0] for volume in database]
    owner = np.concatenate([[place] * len(volume[5]) for place, volume in enumerate(database)])
    matrix = np.concatenate([volume[5] for volume in database])
    counts = {scheme: defaultdict(float) for scheme in (*PAPER, *OURS)}
    for _, labels, is_query, positions, indices, vectors, share in volumes:
        if not is_query:
            continue
        similarity = vectors @ matrix.T
        for scheme, counted in counts.items():
            if scheme == "slicewise":
                for row in range(len(indices)):
                    counted[labels, database[owner[similarity[row].argmax()]][1]] += 1
                continue
            match = first_match(scheme, positions, indices, similarity, owner, names)
            counted[labels, None if match is None else database[match][1]] += share
    tables = {"recall": defaultdict(dict), "precision": defaultdict(dict)}
    for scheme, counted in counts.items():
        for place, level in enumerate(LEVELS):
            right, asked, found = defaultdict(float), defaultdict(float), defaultdict(float)
            for (true, match), share in counted.items():
                asked[true[place]] += share
                if match is not None:
                    found[match[place]] += share
                    right[true[place]] += share * (match[place] == true[place])
            for label in asked:
                tables["recall"][level, label][scheme] = right[label] / asked[label]
                tables["precision"][level, label][scheme] = right[label] / found[label] if found[label] else math.nan
    return tables


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden") / "decathlon"
    write_task(root, "Task02_Heart", 3, 2)
    write_task(root, "Task03_Liver", 6, 6)
    write_task(root, "Task04_Hippocampus", 3, 3, slices=18)
    write_task(root, "Task09_Spleen", 6, 6)
    write_protocols(root / "Task02_Heart" / "imagesTs" / "case_200.nii.gz", "Task02_Heart", 200, 3)
    write_protocols(root / "Task02_Heart" / "imagesTr" / "case_050.nii.gz", "Task02_Heart", 50, 2)
    return root


@pytest.fixture(scope="module")
def out(decathlon, run) -> Path:
    """The results of one run; the tests only read them."""
    folder = decathlon.parent / "out"
    run("--data", decathlon, "--out", folder)
    return folder


def test_every_table_equals_an_independent_evaluation(decathlon, out, tiny_backbone):
    expected = independent(decathlon, tiny_backbone)
    wrong = 0
    for measure, table in expected.items():
        rows = read_tsv(out / f"{measure}.tsv")
        assert list(rows[0])[4:] == [*PAPER, *OURS]
        found = {(row["level"], row["class"]): row for row in rows if row["index"] == "EXACT"}
        assert {key for key in found if not key[1].startswith("(")} == set(table)
        for key, values in table.items():
            for scheme, value in values.items():
                cell = found[key][scheme]
                assert (float(cell) if cell else math.nan) == pytest.approx(value, abs=6e-5, nan_ok=True), (key, scheme)
                wrong += value < 1
        for level in LEVELS:
            classes = [values["all"] for (own, _), values in table.items() if own == level]
            mean = found[level, "(mean of classes)"]["all"]
            assert float(mean) == pytest.approx(np.nanmean(classes), abs=6e-5)
    # A set on which everything is found, or every column finds the same, would prove little.
    assert wrong > 20
    organs = {scheme: tuple(row[scheme] for row in found.values()) for scheme in (*PAPER, *OURS)}
    assert len({organs[scheme] for scheme in ("all", "weighted", "neighbours_5", "late_interaction")}) == 4


def test_indexes_agree_with_exact_search_and_say_so(out):
    rows = {row["index"]: row for row in read_tsv(out / "index_agreement.tsv")}
    assert list(rows) == ["HNSW", "LSH", "EXACT"]
    assert float(rows["EXACT"]["recall_at_1"]) == 1
    assert float(rows["HNSW"]["recall_at_1"]) >= 0.999
    # 128 bits of 64 dimensions cannot be as good as the vectors; all equal would mean nothing was compared.
    assert 0.1 < float(rows["LSH"]["recall_at_1"]) < 1
    confusion = read_tsv(out / "confusion.tsv")
    heart = [
        float(row["cases"])
        for row in confusion
        if (row["level"], row["index"], row["scheme"], row["class"]) == ("organ", "EXACT", "all", "heart")
    ]
    # The 4-D file is one case, its three protocols a third each.
    assert sum(heart) == pytest.approx(3, abs=1e-4)


def test_figures_and_report_are_written(decathlon, tmp_path, run):
    run("--data", decathlon, "--out", tmp_path / "out", "--tasks", "Heart,4,Task03_Liver")
    out = tmp_path / "out"
    for stem in ("confusion_organ_tiny", "confusion_body_region_tiny", "confusion_modality_tiny", "recall_organ"):
        assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (out / f"{stem}.svg").read_text()
    report = (out / "report.md").read_text()
    assert "spleen" not in report
    assert "Not the paper's data set" in report
    assert "Task09_Spleen" in report
    assert "Not the paper's backbone" in report
    rows = read_tsv(out / "paper_comparison.tsv")
    chest = next(
        row for row in rows if (row["body_region"], row["index"], row["scheme"]) == ("chest", "LSH", "weighted")
    )
    # Mean of the paper's .547, .690, .5, .547 and .761.
    assert float(chest["paper"]) == pytest.approx(0.609, abs=1e-9)
    assert float(chest["difference"]) == pytest.approx(float(chest["ours"]) - 0.609, abs=1e-4)


def test_the_confusion_is_drawn_for_all_slices_whatever_does_best(out):
    drawn = sorted(text for text in svg_texts(out / "confusion_organ_tiny.svg") if text[0].isdigit())
    cases: dict[str, list[str]] = defaultdict(list)
    for entry in read_tsv(out / "confusion.tsv"):
        if (entry["level"], entry["index"]) == ("organ", "HNSW"):
            count = float(entry["cases"])
            cases[entry["scheme"]].append(f"{count:.0f}" if count.is_integer() else f"{count:.1f}")
    assert drawn == sorted(cases["all"])
    # Else it would prove nothing.
    assert drawn != sorted(cases["random_5"])


def test_the_report_is_short_and_narrow(out):
    lines = (out / "report.md").read_text().splitlines()
    assert len(lines) < 110
    assert max(len(line) for line in lines if line.startswith("|")) < 125
