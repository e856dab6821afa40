"""Tables: they fit a terminal, and are complete elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.phantoms import phantom, write_nifti
from tests.support.streams import Peer, header_of, slice_of

IDS = [f"7d0c91ab-{seed}fff-4aaa-8bbb-0123456789ab" for seed in range(2)] + ["81aa0000-0000-4aaa-8bbb-0123456789ab"]


@pytest.fixture
def archive(server):
    """Volumes as DICOM gives them: UUIDs, deep folders, several labels."""
    with Peer(server.address) as peer:
        for seed, volume_id in enumerate(IDS):
            slices = [slice_of(*entry) for entry in enumerate(phantom(seed))]
            source = f"/data/archive/institution-north/2026/study-{seed}/ct/series-{seed}"
            labels = {"body_region": "abdomen", "organ": "pancreas", "site": "institution-north"}
            peer.ingest(*slices, volume=header_of(volume_id, 12), source=source, labels=labels)


@pytest.fixture
def on_terminal(server, tmp_path):
    """Runs `slicevote` on a terminal of a width; returns the lines that it shows."""

    def run(width: int, *words: object) -> list[str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment |= {"TERM": "xterm", "SLICEVOTE_SERVER": server.address}
        environment["SLICEVOTE_PATIENT_SECRET"] = str(tmp_path / "secret")
        command = [str(Path(sys.executable).parent / "slicevote"), *map(str, words)]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            shown = bytearray()
            while chunk := _read(ours):
                shown += chunk
        os.close(ours)
        assert process.returncode == 0, shown
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).splitlines()

    return run


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_the_terminal(on_terminal, tmp_path, width):
    query = write_nifti(tmp_path / "query.nii.gz", phantom(1))
    listed = on_terminal(width, "volumes")
    ranked = on_terminal(width, "search", query, "--modality", "CT")
    reranked = on_terminal(width, "search", query, "--modality", "CT", "--rerank")
    for lines in (listed, ranked, reranked):
        rows = [line for line in lines if re.search(r"^(.* )?(7d0c91ab|81aa0000)", line)]
        assert rows, lines
        for row in rows:
            assert cell_len(row.rstrip()) <= width
            assert re.search(r"series-[012] *$", row), row
    assert len([line for line in listed if "7d0c91ab-" in line]) == 2


@pytest.mark.usefixtures("archive")
def test_elsewhere_every_row_is_complete(run, tmp_path):
    query = write_nifti(tmp_path / "query.nii.gz", phantom(1))
    for words in (("volumes",), ("search", query, "--modality", "CT", "--top", 3, "--rerank")):
        printed = run(*words).stdout
        rows = [line for line in printed.splitlines() if any(volume_id in line for volume_id in IDS)]
        assert rows
        for row in rows:
            assert "modality=CT, body_region=abdomen, organ=pancreas, site=institution-north" in row
            assert "/data/archive/institution-north/2026/study-" in row
