"""The query's own volumes do not vote, and what is said of it is true."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from slicevote.contract import SECRET_FINGERPRINT
from slicevote.v1 import archive_pb2
from slicevote_client import Client
from slicevote_client.patients import secret_fingerprint

from tests.support.phantoms import phantom_volume
from tests.support.streams import Peer

SECRET = b"a secret of the tests, 32 bytes and more"


@pytest.fixture
def client_of(scripted):
    with Client(scripted.address, secret=SECRET, timeout_s=60) as connected:
        yield connected


@pytest.fixture
def scan(tmp_path):
    """A volume with everything that tells whose it is."""
    volume = phantom_volume(tmp_path, 1)
    return replace(volume, patient_id="P1", study_instance_uid="1.2.3", series_instance_uid="1.2.3.4")


def test_the_fingerprint_is_the_contracts():
    expected = hmac.new(SECRET, b"slicevote.v1 patient secret", hashlib.sha256).hexdigest()[:16]
    assert secret_fingerprint(SECRET) == expected
    assert SECRET_FINGERPRINT.fullmatch(expected)


def test_everything_that_tells_whose_a_volume_is_excludes_it(client_of, scripted, scan):
    ranking = client_of.search(scan)
    asked = scripted.headers[0].filter
    assert list(asked.exclude_volume_ids) == [scan.id]
    assert list(asked.exclude_series_instance_uids) == ["1.2.3.4"]
    assert list(asked.exclude_study_instance_uids) == ["1.2.3"]
    assert len(asked.exclude_patient_keys) == 1
    assert asked.patient_secret_fingerprint == secret_fingerprint(SECRET)
    assert ranking.own_excluded == ("volume", "series", "study", "patient")


def test_what_is_not_known_is_not_claimed(client_of, scripted, scan):
    nameless = replace(scan, patient_id="", study_instance_uid="", series_instance_uid="")
    assert client_of.search(nameless).own_excluded == ("volume",)
    asked = scripted.headers[0].filter
    assert not asked.exclude_patient_keys
    assert not asked.patient_secret_fingerprint
    assert not asked.exclude_study_instance_uids
    assert client_of.search(scan, include_own=True).own_excluded == ()
    assert not scripted.headers[1].filter.ByteSize()


def test_keys_of_another_secret_exclude_nobody(client_of, scripted, scan):
    scripted.ranking.patient_secret_differs = True
    ranking = client_of.search(scan)
    assert ranking.patient_secret_differs
    assert ranking.own_excluded == ("volume", "series", "study")


def test_named_patients_bring_the_fingerprint(client_of, scripted, scan):
    client_of.search(scan, include_own=True, exclude_patients=["ab"])
    asked = scripted.headers[0].filter
    assert list(asked.exclude_patient_keys) == ["ab"]
    assert asked.patient_secret_fingerprint == secret_fingerprint(SECRET)


def test_an_ingest_brings_the_fingerprint_with_a_key_only(client_of, scripted, scan):
    client_of.ingest(scan)
    client_of.ingest(scan, with_patient_key=False)
    client_of.ingest(replace(scan, patient_id=""))
    keyed, *others = scripted.headers
    assert len(keyed.patient_key) == 32
    assert keyed.patient_secret_fingerprint == secret_fingerprint(SECRET)
    assert [(header.patient_key, header.patient_secret_fingerprint) for header in others] == [("", "")] * 2


def test_the_command_says_what_did_not_vote(run_scripted, scripted, scans):
    with_patient = run_scripted("search", scans / "1.nii.gz")
    assert (
        "left out: the query itself and all that the archive knows of its patient; --include-own" in with_patient.stdout
    )
    without = run_scripted("search", scans / "1.nii.gz", "--no-manifest", "--modality", "CT")
    assert "left out: the query itself; other volumes of its patient may have voted" in without.stdout
    assert "left out" not in run_scripted("search", scans / "1.nii.gz", "--include-own").stdout

    scripted.ranking.patient_secret_differs = True
    differs = run_scripted("search", scans / "1.nii.gz")
    assert differs.returncode == 0
    assert "left out: the query itself; other volumes of its patient may have voted" in differs.stdout
    assert "warning: other volumes of the query's patient may have voted" in differs.stderr
    assert "SLICEVOTE_PATIENT_SECRET=FILE" in differs.stderr
    document = json.loads(run_scripted("search", scans / "1.nii.gz", "--json").stdout)
    assert (document["patient_secret_differs"], document["own_excluded"]) == (True, ["volume"])


def test_an_ingest_without_patient_keys(run_scripted, scripted, scans):
    assert run_scripted("ingest", scans, "--no-patient-key").returncode == 0
    assert [header.patient_key for header in scripted.headers] == [""] * 3
    assert run_scripted("ingest", scans).returncode == 0
    assert all(header.patient_key and header.patient_secret_fingerprint for header in scripted.headers[3:])


def test_another_series_of_the_same_study_does_not_vote(client, scan, tmp_path):
    stranger = phantom_volume(tmp_path, 2)
    sibling = replace(scan, id="sibling", series_instance_uid="1.2.3.5", patient_id="")
    for volume in (sibling, stranger):
        client.ingest(volume)
    ranking = client.search(replace(scan, patient_id=""))
    assert [match.volume.volume_id for match in ranking.matches] == [stranger.id]


def test_another_secret_is_refused_and_told(server, run, scans, tmp_path):
    assert run("ingest", scans / "2.nii.gz", scans / "3.nii.gz").returncode == 0
    other = {"SLICEVOTE_PATIENT_SECRET": str(tmp_path / "other")}
    refused = run("ingest", scans / "1.nii.gz", **other)
    assert refused.returncode == 1
    assert "--no-patient-key" in refused.stderr
    assert run("ingest", scans / "1.nii.gz", "--no-patient-key", **other).returncode == 0
    searched = run("search", scans / "2.nii.gz", **other)
    assert "left out: the query itself; other volumes of its patient may have voted" in searched.stdout
    assert "made with another secret" in searched.stderr
    assert "made with another secret" not in run("search", scans / "2.nii.gz").stderr


def test_the_server_finds_ids_by_their_beginning(server, client, scan):
    client.ingest(scan)
    with Peer(server.address) as peer:
        answer = peer.archive.ListVolumes(archive_pb2.ListVolumesRequest(volume_id_prefix="no-such-id"))
    assert not answer.volumes
