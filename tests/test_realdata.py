"""Real scans, the real backbone, through the door."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from slicevote_client import Client
from slicevote_volumes import labelled, load_manifest, read_volumes

from tests.support.servers import LocalServer

pytestmark = [pytest.mark.realdata, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    """EfficientNet-Lite0 with its ImageNet weights, as the exporter writes it."""
    path = tmp_path_factory.mktemp("backbones") / "efficientnet-lite0.onnx"
    command = Path(sys.executable).parent / "slicevote-export"
    subprocess.run([str(command), "efficientnet-lite0", "--out", str(path)], check=True, capture_output=True)
    return path


def test_every_volume_finds_its_like_without_its_own_patient(shared_data, lite0, tmp_path):
    manifest = load_manifest(shared_data / "manifest.tsv")
    rows = [(row, labelled(volume, row)) for row in manifest.rows for volume in read_volumes(manifest.path_of(row))]
    correct = {"modality": Counter(), "body_region": Counter()}
    volumes = Counter(row.path for row, _ in rows)
    with LocalServer(tmp_path / "data", [lite0]) as server, Client(server.address, secret=b"tests") as client:
        for _, volume in rows:
            client.ingest(volume)
        for row, volume in rows:
            ranking = client.search(volume)
            labels = ranking.matches[0].volume.labels if ranking.matches else {}
            for level, counted in correct.items():
                # A row of several protocols counts once, by the share of its protocols that are right.
                counted[row.path] += (labels.get(level) == row.columns[level]) / volumes[row.path]
        # A CT of a chest, its patient's other scan left out, looks most like another chest.
        query = next(volume for row, volume in rows if row.path.endswith("LIDC-IDRI-0003_dcm"))
        best = client.search(query).matches[0].volume
        assert (best.modality, best.labels["body_region"]) == ("CT", "chest")
        assert "LIDC-IDRI-0003" not in best.source
    recall = {level: sum(counted.values()) / len(volumes) for level, counted in correct.items()}
    print(f"recall of the first match over {len(volumes)} rows: {recall}")
    assert recall["modality"] >= 0.90
    assert recall["body_region"] >= 0.62


@pytest.mark.parametrize(
    "name",
    [
        "CT_chest/conceptToClinic__LIDC-IDRI-0003_dcm",
        "CT_abdomen/medimagesjl__ScalarVolume_0_dcm",
        "MR_pelvis/picaiprep__ProstateX-0000_T2tra_dcm",
    ],
)
def test_dicom_and_nifti_of_the_same_scan_have_the_same_first_match(shared_data, lite0, tmp_path, name):
    dcm2niix = pytest.importorskip("dcm2niix")
    folder = shared_data / "volumes" / name
    subprocess.run([dcm2niix.bin, "-o", str(tmp_path), "-f", "scan", str(folder)], check=True, capture_output=True)
    (dicom,) = read_volumes(folder)
    (nifti,) = read_volumes(tmp_path / "scan.nii", modality=dicom.modality)
    # What NIfTI does not carry: with it, the same volumes are left out.
    nifti = nifti.with_labels(nifti.labels, patient_id=dicom.patient_id)
    assert len(dicom) == len(nifti)
    with LocalServer(tmp_path / "data", [lite0]) as server, Client(server.address, secret=b"tests") as client:
        for path in sorted((shared_data / "volumes").glob("*/*dcm"))[:8]:
            for volume in read_volumes(path):
                client.ingest(volume)
        rankings = [client.search(volume, exclude_volumes=[dicom.id]) for volume in (dicom, nifti)]
    first = [ranking.matches[0] for ranking in rankings]
    assert first[0].volume.volume_id == first[1].volume.volume_id
    assert first[0].votes == pytest.approx(first[1].votes, abs=1)
