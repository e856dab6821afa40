"""Usual mistakes: what was wrong, where, and what to do; exit code 2 for misuse, 1 for failure."""

from __future__ import annotations

import http.server
import itertools
import threading

from slicevote_client.bulk import ingest_all
from slicevote_client.cli import app
from typer.testing import CliRunner

from tests.client.scripted import FAILED_PRECONDITION, RESOURCE_EXHAUSTED


def fails(result, code: int, *parts: str) -> None:
    assert result.returncode == code, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_a_path_that_does_not_exist(run, scans):
    for command in ("ingest", "search"):
        fails(run(command, scans / "nowhere"), 2, f"there is no file or folder {scans / 'nowhere'}")


def test_no_server_and_native_log_lines(run, scans):
    # gRPC logs to stderr that it does not know the proxy; our sentence is all that a user needs.
    result = run("status", against="127.0.0.1:1", http_proxy="ftp://127.0.0.1:1", no_proxy="")
    fails(result, 1, "error: no server answers at 127.0.0.1:1", "slicevote-server serve")
    assert len(result.stderr.splitlines()) == 1
    fails(run("ingest", scans, "--json", against="127.0.0.1:1"), 1, "error: no server answers at 127.0.0.1:1")


def test_a_host_that_does_not_exist(run):
    fails(run("status", against="nowhere.invalid"), 1, "nowhere.invalid:50051", "there is no host of that name")


def test_a_wrong_port(run):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        fails(run("status", against=f"127.0.0.1:{web.server_port}"), 1, "check the port")
    finally:
        web.shutdown()
        web.server_close()
    for address in ("localhost:notaport", "localhost:0", "localhost:65536", "http://localhost:50051", ""):
        fails(run("status", "--server", address), 2, "is not HOST:PORT, such as localhost:50051")


def test_a_folder_without_images(run, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    fails(run("search", folder), 1, f"there is no volume in {folder}", "NIfTI")
    (folder / "letter.txt").write_text("Dear reader")
    fails(run("search", folder), 1, "1 file(s), none of them a DICOM image or NIfTI")
    result = run("ingest", folder)
    assert (result.returncode, result.stdout) == (1, "0 volumes with 0 slices ingested, 0 failures\n")
    assert "1 file(s), none of them a DICOM image or NIfTI" in result.stderr


def test_an_unknown_label(run_scripted, scripted, scans):
    scripted.labels = {"body_region": {"chest": 2, "head": 1}, "site": {"north": 3}}
    for command in (("volumes",), ("search", scans / "1.nii.gz")):
        fails(
            run_scripted(*command, "--label", "body_regoin=chest"),
            1,
            "no volume in the archive has a label 'body_regoin'; did you mean 'body_region'?",
            "(the labels are body_region, site)",
        )
        fails(
            run_scripted(*command, "--label", "body_region=chest", "--label", "body_region=haed"),
            1,
            "no volume in the archive has the label body_region=haed; did you mean 'head'? (the values are chest, head",
        )
    fails(run_scripted("volumes", "--label", "chest"), 2, "'chest' is not KEY=VALUE")
    assert run_scripted("search", scans / "1.nii.gz", "--label", "body_region=head").returncode == 0
    scripted.labels = {}
    fails(run_scripted("volumes", "--label", "a=b"), 1, "no volume has any label")


def test_a_typing_error_in_an_id(run, scans):
    run("ingest", scans)
    for words in (
        ("show", "0000dead"),
        ("delete", "0000dead"),
        ("search", scans / "1.nii.gz", "--exclude", "0000dead"),
    ):
        fails(run(*words), 1, "the archive has no volume '0000dead'; 'slicevote volumes' lists")


def test_a_wrong_sampling_or_aggregation(run, scans):
    """Is told before anything is read or sent: there is no server here."""
    query, nowhere = scans / "1.nii.gz", "127.0.0.1:1"
    fails(
        run("search", query, "--sampling", "random", against=nowhere),
        2,
        "'random' is no sampling",
        "random:N",
        "mm:GAP",
    )
    fails(run("ingest", query, "--sampling", "random:0", against=nowhere), 2, "'random:0' is no sampling", "random:N")
    result = run("search", query, "--aggregation", "slicewise", against=nowhere)
    fails(result, 2, "'slicewise' is no aggregation", "gaussian:SIGMA", "slice-wise")


def test_a_folder_for_thumbnails_that_cannot_be_written(run, scans, tmp_path):
    run("ingest", scans / "1.nii.gz")
    volume_id = run("volumes").stdout.splitlines()[1].split()[0]
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "pictures"
    fails(run("show", volume_id, "--thumbnails", folder), 1, f"cannot be written into {folder}: Not a directory")


def test_a_full_disk_stops_an_ingest_at_once(run_scripted, scripted, scans):
    scripted.refusal = (RESOURCE_EXHAUSTED, "DISK_FULL", "no room left on the disk")
    result = run_scripted("ingest", scans, "--parallel", 1)
    assert result.returncode == 1
    assert len(scripted.headers) == 1
    assert result.stderr.count("no room left on the disk") == 1
    assert "Free space on the server's disk" in result.stderr
    assert "2 volumes were not sent; ingest again with --skip-existing to go on" in result.stderr


def test_another_patient_secret_stops_an_ingest_at_once(run_scripted, scripted, scans, tmp_path):
    scripted.refusal = (
        FAILED_PRECONDITION,
        "PATIENT_SECRET_DIFFERS",
        "the archive's keys were made with another secret",
    )
    result = run_scripted("ingest", scans, "--parallel", 1)
    assert result.returncode == 1
    assert len(scripted.headers) == 1
    assert result.stderr.count("another secret") == 1
    assert f"{tmp_path / 'secret'}" in result.stderr
    assert "--no-patient-key" in result.stderr


def test_a_typing_error_in_a_backbone(run, scans):
    run("ingest", scans / "1.nii.gz")
    for words in (("volumes",), ("search", scans / "2.nii.gz")):
        fails(run(*words, "--backbone", "tinny"), 1, "this server has no backbone 'tinny'; it has tiny")


def test_a_patient_secret_that_cannot_be_read(run, scans, tmp_path):
    (tmp_path / "file").write_text("")
    secret = tmp_path / "file" / "secret"
    result = run("ingest", scans, SLICEVOTE_PATIENT_SECRET=str(secret))
    assert result.returncode == 1
    assert f"the patient secret {secret} cannot be read or created: " in result.stderr
    (tmp_path / "short").write_text("short")
    assert "at least 32 bytes" in run("ingest", scans, SLICEVOTE_PATIENT_SECRET=str(tmp_path / "short")).stderr


def test_a_broken_manifest(run, scans):
    (scans / "manifest.tsv").write_text("path\tsite\n1.nii.gz\n")
    fails(run("ingest", scans), 1, "manifest.tsv: line 2 has 1 columns")


def test_a_modality_that_is_not_used_is_told(run, scans):
    result = run("ingest", scans, "--modality", "MR")
    assert result.returncode == 0
    assert "and 2 more: --modality MR is not used, because the file or its manifest says CT" in result.stderr
    assert "is not used" not in run("ingest", scans, "--modality", "CT").stderr


def test_a_slab_beyond_the_query(run, scans):
    run("ingest", scans)
    fails(run("search", scans / "1.nii.gz", "--slab", "0:12"), 2, "the query has slices 0 to 11")
    assert run("search", scans / "1.nii.gz", "--slab", "0:11").returncode == 0


def test_a_manifest_that_does_not_exist(run, scans):
    fails(run("ingest", scans, "--manifest", scans / "none.tsv"), 2, "none.tsv' does not exist")


def test_an_interrupted_ingest_says_how_to_go_on(server, scans, tmp_path, monkeypatch):
    def interrupted(client, volumes, **options):
        yield from itertools.islice(ingest_all(client, volumes, **options), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr("slicevote_client.commands.ingest.ingest_all", interrupted)
    monkeypatch.setenv("SLICEVOTE_PATIENT_SECRET", str(tmp_path / "secret"))
    result = CliRunner().invoke(app, ["ingest", str(scans), "--server", server.address])
    assert result.exit_code == 130
    assert "1 volume with 12 slices ingested" in result.stdout
    assert "Ingest again with --skip-existing" in result.stderr
