"""Real scans, the real backbone: what the project promises of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.conftest import read_tsv
from tests.evaluation.test_golden import OURS, PAPER

pytestmark = [pytest.mark.realdata, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbones") / "efficientnet-lite0.onnx"
    exporter = Path(sys.executable).with_name("slicevote-export")
    subprocess.run([str(exporter), "efficientnet-lite0", "--out", str(path)], check=True, capture_output=True)
    return path


def test_leaving_one_patient_out(shared_data, lite0, tmp_path, run):
    out = tmp_path / "out"
    run("--data", shared_data, "--leave-one-patient-out", "--out", out, "--backbone", lite0, timeout=850)
    rows = read_tsv(out / "recall.tsv")
    assert list(rows[0])[4:] == [*PAPER, *OURS]
    overall = {(row["level"], row["index"]): row for row in rows if row["class"] == "(all cases)"}
    for index in ("HNSW", "EXACT"):
        assert float(overall["modality", index]["all"]) >= 0.92
        assert float(overall["body_region", index]["all"]) >= 0.62
    assert all(row[scheme] for row in overall.values() for scheme in (*PAPER, *OURS))
    agreement = {row["index"]: row for row in read_tsv(out / "index_agreement.tsv")}
    assert float(agreement["HNSW"]["recall_at_1"]) >= 0.999
    assert int(agreement["HNSW"]["slices"]) > 5000


def test_every_hippocampus_finds_one_among_all_other_volumes(shared_data, lite0, tmp_path, run):
    out = tmp_path / "out"
    run("--data", shared_data, "--data", shared_data / "msd", "--out", out, "--backbone", lite0, timeout=850)
    found = {(row["class"], row["index"]): row for row in read_tsv(out / "recall.tsv") if row["level"] == "organ"}
    for index in ("HNSW", "LSH", "EXACT"):
        assert {found["hippocampus", index][scheme] for scheme in (*PAPER, *OURS)} == {"1.0000"}
    agreement = {row["index"]: row for row in read_tsv(out / "index_agreement.tsv")}
    assert float(agreement["HNSW"]["recall_at_1"]) >= 0.999
