"""`slicevote-server archive`: what it says of a data folder, without the backbones' files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slicevote_server.archive.data_folder import DataFolder
from slicevote_server.archive.interface import Provenance
from slicevote_server.archive.kinds import open_archive
from slicevote_server.archive.lsh import LshIndex, LshSettings

from tests.support.archives import IDENTITY, NUMERICS, unit, volume


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one archive of three volumes."""
    folder = DataFolder(tmp_path / "data")
    archive = open_archive(folder.archive("tiny"), IDENTITY)
    archive.record_provenance(Provenance(NUMERICS, "0123456789abcdef"))
    for number in range(3):
        archive.put(*volume(f"v{number}", unit(np.random.default_rng(number), 4), patient="p"))
    archive.close()
    folder.close()
    return tmp_path / "data"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    executable = str(Path(sys.executable).parent / "slicevote-server")
    return subprocess.run(
        [executable, "archive", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def test_info(data):
    (told,) = json.loads(command("info", "--data", data, "--json").stdout)
    assert told.pop("disk_bytes") > 0
    assert told == {
        "backbone": "tiny",
        "weights_sha256": "0" * 64,
        "dimension": 16,
        "precision": "fp32",
        "intensity_policy": {"version": 1},
        "volumes": 3,
        "slices": 12,
        "unindexed_slices": 12,
        "numerics": NUMERICS.as_mapping(),
        "patient_secret_fingerprint": "0123456789abcdef",
    }
    assert command("info", "--data", data).stdout.startswith(
        "tiny: 3 volumes, 12 slices (12 searched without the graph), "
    )


def test_rebuild_lsh(data):
    assert command("rebuild-lsh", "--data", data, "--lsh-bits", "64").stdout == "tiny: 12 slices, 64 bits each\n"
    folder = DataFolder(data)
    archive = open_archive(folder.archive("tiny"), IDENTITY)
    index = LshIndex(folder.lsh("tiny"), archive, LshSettings(64))
    index._load()
    assert index.slice_count == 12
    assert index.is_in_step()
    archive.close()
    folder.close()


def test_a_folder_without_archives_is_refused(tmp_path):
    (tmp_path / "data" / "archives" / "other").mkdir(parents=True)
    for data, said in ((tmp_path, "holds no archive; name the folder"), (tmp_path / "data", "other/edge is gone")):
        refused = command("info", "--data", data)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert said in refused.stderr
    assert not (tmp_path / "archives").exists()


@pytest.mark.parametrize("arguments", [["-h"], ["info", "-h"], ["rebuild-lsh", "-h"]])
def test_help(arguments):
    shown = command(*arguments)
    assert shown.returncode == 0
    assert "Usage:" in shown.stdout
