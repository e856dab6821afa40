"""A data folder belongs to one server at a time, whichever of its processes dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slicevote_client import Client

from tests.support.phantoms import phantom_volume
from tests.support.servers import ServerProcess

ON_CPU = ("--provider", "cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def first(data: Path, tiny_backbone: Path) -> Iterator[ServerProcess]:
    with ServerProcess(data, tiny_backbone, *ON_CPU) as server:
        yield server


def command(*arguments: object) -> str:
    """Runs `slicevote-server` until it ends; gives what it wrote."""
    finished = subprocess.run(
        [str(Path(sys.executable).parent / "slicevote-server"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    return finished.stderr


def archive_process(data: Path) -> int:
    """The process that has the archive open."""
    return int((data / "archives" / "tiny" / "edge.lock").read_text())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("archive_is_down", [False, True], ids=["running", "archive's process killed"])
def test_a_second_start_is_refused_and_the_first_goes_on(first, data, tiny_backbone, tmp_path, archive_is_down):
    before, after = phantom_volume(tmp_path, 1), phantom_volume(tmp_path, 2)
    with Client(first.address) as client:
        client.ingest(before)
        journal = sorted((data / "archives" / "tiny" / "edge" / "wal").iterdir())
        if archive_is_down:
            # Nobody has the archive open now, until the next call.
            os.kill(archive_process(data), signal.SIGKILL)
        serve = ("serve", "--data", data, "--backbone", tiny_backbone, "--listen", "127.0.0.1:0")
        for arguments in (serve, ("archive", "info", "--data", data), ("archive", "rebuild-lsh", "--data", data)):
            said = command(*arguments)
            assert f"is in use by process {first.process.pid}; stop that server" in said
            assert "Traceback" not in said
        assert sorted((data / "archives" / "tiny" / "edge" / "wal").iterdir()) == journal
        client.ingest(after)
        assert client.search(before, include_own=True).matches[0].volume.volume_id == before.id
        assert {volume.volume_id for volume in client.volumes()} == {before.id, after.id}
        assert client.status()["archives"][0]["engine_restart_count"] == int(archive_is_down)


def test_a_killed_server_can_be_started_again_at_once(first, data, tiny_backbone, tmp_path):
    volume = phantom_volume(tmp_path, 1)
    with Client(first.address) as client:
        client.ingest(volume)
    first.process.kill()
    first.process.wait()
    with ServerProcess(data, tiny_backbone, *ON_CPU) as second, Client(second.address) as client:
        assert client.volume(volume.id).indexed_slice_count == 12


def test_a_start_waits_for_the_archive_process_of_a_killed_server(first, data, tiny_backbone, tmp_path):
    """It may still be writing: nobody may open the archive before it has ended."""
    volume = phantom_volume(tmp_path, 1)
    with Client(first.address) as client:
        client.ingest(volume)
    orphan = archive_process(data)
    os.kill(orphan, signal.SIGSTOP)
    try:
        first.process.kill()
        first.process.wait()
        second = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "slicevote-server"), "serve", "--data", str(data)),
                *("--backbone", str(tiny_backbone), "--listen", "127.0.0.1:0", *ON_CPU),
            ],
            stderr=(tmp_path / "second.log").open("wb"),
        )
        wait_for(lambda: f"waiting for process {orphan} to release" in (tmp_path / "second.log").read_text())
        assert archive_process(data) == orphan
    finally:
        os.kill(orphan, signal.SIGCONT)
    try:
        wait_for(lambda: "listening on" in (tmp_path / "second.log").read_text())
        address = (tmp_path / "second.log").read_text().split("listening on ")[1].split()[0]
        with Client(address) as client:
            assert client.volume(volume.id).indexed_slice_count == 12
            assert archive_process(data) != orphan
    finally:
        second.terminate()
        second.wait(60)
