"""The wheel in a clean environment: what a user has who installs slicevote and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.phantoms import write_phantoms

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
COMMANDS = ("slicevote", "slicevote-server", "slicevote-export")


def run(*words, **options):
    process = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=280, check=False, **options
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source archive, so that this holds everything too."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, REPOSITORY)
    assert len(list(folder.glob("slicevote-*.tar.gz"))) == 1
    (wheel,) = folder.glob("slicevote-*.whl")
    return wheel


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """The commands of a new environment that holds the wheel with its extra `server`."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", f"{wheel}[server]", cwd=folder)
    return folder / "venv" / "bin"


def test_every_command_says_the_wheel_s_version(wheel, bin_folder):
    version = wheel.name.split("-")[1]
    for command in COMMANDS:
        assert version in run(bin_folder / command, "--version").split()


def test_there_is_no_torch(bin_folder):
    installed = json.loads(run(bin_folder / "python", "-m", "pip", "list", "--format", "json"))
    assert not {"torch", "timm", "onnxscript"} & {package["name"] for package in installed}


def test_another_backbone_names_the_extra_to_install(bin_folder, tmp_path):
    process = subprocess.run(
        [bin_folder / "slicevote-export", "dinov1-vits16"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert process.returncode == 1
    assert process.stderr.endswith("is not installed; pip install 'slicevote[export]'\n")
    # Such a line takes the slicevote that is installed, and asks no package index for it.
    planned = run(bin_folder / "python", "-m", "pip", "install", "--dry-run", "--no-index", "slicevote[server]")
    assert "Would install" not in planned


def test_export_serve_ingest_search(bin_folder, tmp_path):
    phantoms = write_phantoms(tmp_path / "phantoms", people=2)
    run(bin_folder / "slicevote-export", "efficientnet-lite0", "--out", tmp_path / "lite0.onnx", cwd=tmp_path)
    log = tmp_path / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [
                bin_folder / "slicevote-server",
                *("serve", "--data", "archive", "--backbone", "lite0.onnx", "--listen", "127.0.0.1:0"),
            ],
            cwd=tmp_path,
            stderr=stream,
        )
    try:
        deadline = time.monotonic() + 120
        while "listening on " not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        environment = {
            "SLICEVOTE_SERVER": log.read_text().split("listening on ")[1].split()[0],
            "SLICEVOTE_PATIENT_SECRET": str(tmp_path / "secret"),
            "HOME": str(tmp_path),
        }
        run(bin_folder / "slicevote", "ingest", phantoms, env=environment)
        query = phantoms / "phantom-chest-1.nii.gz"
        document = json.loads(run(bin_folder / "slicevote", "search", query, "--json", env=environment))
        assert Path(document["matches"][0]["volume"]["source"]).name == "phantom-chest-2.nii.gz"
    finally:
        server.terminate()
        server.wait(60)
