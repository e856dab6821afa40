"""The modality decides how grey values are read: however it is written, it is understood or refused."""

from __future__ import annotations

import json

import pytest
from slicevote_client import Client
from slicevote_volumes import discover

from tests.support.phantoms import phantom, write_nifti


@pytest.fixture
def scan(tmp_path):
    folder = tmp_path / "scan"
    folder.mkdir()
    return write_nifti(folder / "scan.nii.gz", phantom(1))


def test_lower_case_is_the_same_modality(run, scan):
    assert run("ingest", scan, "--modality", "ct").returncode == 0
    (record,) = json.loads(run("volumes", "--label", "modality=ct", "--json").stdout)
    assert (record["modality"], record["labels"]["modality"]) == ("CT", "CT")
    found = json.loads(
        run("search", scan, "--modality", "ct", "--label", "modality=Ct", "--include-own", "--json").stdout
    )
    assert found["query"]["modality"] == "CT"
    # The same window of grey values: the scan is its own perfect match.
    assert found["matches"][0]["similarity_mean"] > 0.9999


def test_no_modality_of_dicom_is_misuse(run, scan):
    for command in ("ingest", "search"):
        result = run(command, scan, "--modality", "mri")
        assert result.returncode == 2
        assert "'MRI' is not a DICOM modality; did you mean MR?" in result.stderr


def test_the_modality_is_not_a_free_label(run, scan):
    result = run("ingest", scan, "--label", "modality=CT")
    assert result.returncode == 2
    assert "--modality" in result.stderr


def test_the_python_client_normalises_before_it_sends(scripted, scan):
    (volume,) = discover([scan], modality="CT").volumes
    with Client(scripted.address) as client:
        client.ingest(volume, labels={"modality": "ct"})
        client.search(volume, labels={"modality": [" ct ", "Mr"]})
    ingested, searched = scripted.headers
    assert dict(ingested.labels) == {"modality": "CT"}
    assert list(searched.filter.labels[0].any_of) == ["CT", "MR"]


def test_a_file_without_a_modality_is_warned_of_once(run, scan):
    for words in (("ingest", scan), ("search", scan, "--include-own")):
        result = run(*words)
        assert result.returncode == 0
        assert result.stderr.count(f"warning: {scan}: ") == 1
        (warning,) = json.loads(run(*words, "--json").stdout)["warnings"]
        assert warning["path"] == str(scan)
        assert warning["reason"] in result.stderr
        assert "warning" not in run(*words, "--modality", "MR").stderr


def test_a_manifest_that_names_the_modality_leaves_nothing_to_warn_of(run, scans):
    assert "warning" not in run("ingest", scans).stderr
