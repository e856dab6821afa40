"""`slicevote` as a user runs it: a process, its exit code, its two streams."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.phantoms import phantom, write_nifti


def test_the_whole_round(run, scans):
    ingested = run("ingest", scans)
    assert ingested.returncode == 0, ingested.stderr
    assert "labels from" in ingested.stdout
    assert ingested.stdout.count("added ") == 3
    assert "3 volumes with 36 slices ingested, 0 failures" in ingested.stdout

    found = run("search", scans / "1.nii.gz", "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["query"]["modality"] == "CT"
    assert document["own_excluded"] == ["volume", "patient"]
    assert "1.nii.gz" not in {Path(match["volume"]["source"]).name for match in document["matches"]}
    assert sum(match["votes"] for match in document["matches"]) == 12

    own = json.loads(run("search", scans / "1.nii.gz", "--include-own", "--json").stdout)
    assert Path(own["matches"][0]["volume"]["source"]).name == "1.nii.gz"
    assert own["matches"][0]["volume"]["labels"] == {"body_region": "chest", "modality": "CT"}
    volume_id = own["matches"][0]["volume"]["volume_id"]

    table = run("search", scans / "1.nii.gz", "--include-own", "--sampling", "nth:2", "--aggregation", "gaussian")
    assert table.returncode == 0
    assert volume_id in table.stdout
    assert "6 of 6 planned slices voted" in table.stdout

    listed = run("volumes", "--label", "body_region=chest", "--json")
    assert len(json.loads(listed.stdout)) == 2
    assert "3 volumes" in run("volumes").stdout

    shown = run("show", volume_id, "--thumbnails", scans / "pictures")
    assert "12, of which 12 are indexed and 0 blank" in shown.stdout
    assert len(list((scans / "pictures" / volume_id).glob("*.webp"))) == 12
    assert len(json.loads(run("show", volume_id, "--json").stdout)["slices"]) == 12

    status = json.loads(run("status", "--json").stdout)
    assert status["archives"][0]["volume_count"] == 3
    assert status["archives"][0]["intensity_policy"]["version"] == 1
    assert "tiny: 3 volumes, 36 slices" in run("status").stdout

    assert run("delete", volume_id).returncode == 0
    gone = run("show", volume_id)
    assert gone.returncode == 1
    assert gone.stderr.startswith("error: the archive has no volume")
    assert "Traceback" not in gone.stderr


def test_a_broken_off_ingest_goes_on(run, scans):
    assert run("ingest", scans / "1.nii.gz").returncode == 0
    again = run("ingest", scans, "--skip-existing", "--parallel", 3)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already there ") == 1
    assert "2 volumes with 24 slices ingested, 1 already there, 0 failures" in again.stdout
    document = json.loads(run("ingest", scans, "--skip-existing", "--json").stdout)
    assert len(document["already_there"]) == 3
    assert (document["ingested"], document["failures"]) == ([], 0)
    assert run("ingest", scans, "--parallel", 0).returncode == 2


def test_several_indexes_side_by_side(run, scans):
    run("ingest", scans)
    printed = run("search", scans / "1.nii.gz", "--index", "hnsw,lsh,exact").stdout.split("side by side")[1]
    assert [f"{name}: votes, volume" in printed for name in ("hnsw", "lsh", "exact")] == [True] * 3
    assert printed.count(" s, lookups ") == 3
    document = json.loads(run("search", scans / "1.nii.gz", "--index", "hnsw,exact", "--json").stdout)
    assert document["index"] == "hnsw"
    (other,) = document["other_indexes"]
    assert other["index"] == "exact"
    assert [match["volume"]["volume_id"] for match in other["matches"]] == [
        match["volume"]["volume_id"] for match in document["matches"]
    ]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(run, scans):
    (scans / "broken.nii.gz").write_bytes((scans / "1.nii.gz").read_bytes()[:200])
    result = run("ingest", scans)
    assert result.returncode == 1
    assert "broken.nii.gz" in result.stderr
    assert "3 volumes with 36 slices ingested, 1 failure" in result.stdout
    document = json.loads(run("ingest", scans, "--json").stdout)
    assert len(document["ingested"]) == 3
    assert document["ingested"][0]["replaced"] is True
    assert document["failures"] == 1


def test_misuse_is_exit_code_2(run, scans):
    for words in (
        ("nonsense",),
        ("ingest",),
        ("ingest", scans / "nowhere"),
        ("search", scans / "1.nii.gz", "--index", "btree"),
        ("search", scans / "1.nii.gz", "--slab", "7"),
        ("search", scans),  # three volumes: which one?
        ("search", scans, "--pick", "4"),
        ("ingest", scans, "--label", "chest"),
    ):
        result = run(*words)
        assert result.returncode == 2, (words, result.stdout, result.stderr)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
    assert run("search", scans, "--pick", "2", "--json").returncode == 1  # right use; but the archive is empty


def test_help_teaches(run):
    assert "slicevote ingest /data/scans" in run("--help").stdout
    bare = run()
    assert bare.returncode == 2
    assert bare.stdout.startswith(run("-h").stdout.rstrip("\n"))
    for command in ("ingest", "search", "volumes", "show", "delete", "status"):
        result = run(command, "-h")
        assert result.returncode == 0
        assert "--server" in result.stdout
        assert "--json" in result.stdout


def test_sources_can_be_left_out(run, scans):
    run("ingest", scans, "--no-source")
    assert {volume["source"] for volume in json.loads(run("volumes", "--json").stdout)} == {""}


def test_the_patient_secret_is_made_once_and_only_for_its_owner(run, scans, tmp_path):
    run("ingest", scans)
    secret = tmp_path / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_bytes()
    run("ingest", scans)
    assert secret.read_bytes() == before


def test_the_version_needs_no_command(run):
    assert run("--version").stdout.startswith("slicevote 0.")


def test_the_choices_of_pick_can_be_told_apart(run, tmp_path):
    for name, slices in (("short", 3), ("long", 7)):
        write_nifti(tmp_path / f"{name}.nii.gz", phantom(slices, slices=slices))
    listed = run("search", tmp_path)
    assert listed.returncode == 2
    assert "holds 2 volumes; choose one with --pick:" in listed.stderr
    first, second = listed.stderr.splitlines()[1:]
    assert first.startswith("  1: modality unknown, 7 x 48 x 48, 5 x 1 x 1 mm")
    assert second.startswith("  2: modality unknown, 3 x 48 x 48, 5 x 1 x 1 mm")
    assert first.endswith("long.nii.gz")
