"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.commands import Run, slicevote
from tests.client.scripted import ScriptedServer
from tests.support.phantoms import phantom, write_nifti
from tests.support.servers import LocalServer


@pytest.fixture
def run(server: LocalServer, tmp_path: Path) -> Run:
    """Runs `slicevote` against a real server with an empty archive."""
    return slicevote(server.address, tmp_path / "secret")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with three phantoms and a manifest."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rows = ["path\tmodality\tbody_region\tpatient"]
    for seed, region in ((1, "chest"), (2, "chest"), (3, "head")):
        write_nifti(folder / f"{seed}.nii.gz", phantom(seed))
        rows.append(f"{seed}.nii.gz\tCT\t{region}\tperson-{seed}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A server that answers what the test says."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def run_scripted(scripted: ScriptedServer, tmp_path: Path) -> Run:
    """Runs `slicevote` against the scripted server."""
    return slicevote(scripted.address, tmp_path / "secret")
