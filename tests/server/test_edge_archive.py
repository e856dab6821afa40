"""The embedded archive: its process, its files and its disk."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slicevote_server.archive import filters, points
from slicevote_server.archive.edge_archive import EdgeArchive
from slicevote_server.archive.edge_store import EdgeStore
from slicevote_server.archive.interface import Provenance
from slicevote_server.errors import ArchiveUnavailable, Overloaded, StartupError

from tests.support.archives import GRAPHS, IDENTITY, NUMERICS, unit, volume


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[EdgeArchive]:
    with contextlib.closing(EdgeArchive(tmp_path / "edge", IDENTITY, GRAPHS)) as opened:
        yield opened


def names(archive: EdgeArchive) -> list[str]:
    return list(archive.list_ids(limit=1000).volume_ids)


def kill(archive: EdgeArchive) -> None:
    """Kills the engine's process and waits until it is dead."""
    (process,) = (child for child in multiprocessing.active_children() if child.pid == archive.worker_pid)
    process.kill()
    process.join()


def test_refuses_a_second_opening(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("slicevote_server.archive.edge_shard._LOCK_TIMEOUT_S", 0.0)
    archive.put(*volume("v", unit(np.random.default_rng(17), 3)))
    with pytest.raises(StartupError, match=f"still in use by process {archive.worker_pid}: end that process"):
        EdgeStore(tmp_path / "edge", IDENTITY, GRAPHS)
    archive.put(*volume("w", unit(np.random.default_rng(18), 3)))
    assert names(archive) == ["v", "w"]
    assert archive.restart_count == 0


def test_a_damaged_journal_is_named_and_can_be_given_up(tmp_path):
    edge = tmp_path / "edge"
    archive = EdgeArchive(edge, IDENTITY)
    archive.put(*volume("v", unit(np.random.default_rng(19), 3)))
    archive.close()
    for journal in (edge / "wal").iterdir():
        journal.write_bytes(journal.read_bytes()[:10])
    with pytest.raises(StartupError, match=r"the journal of the archive .* is damaged .* Move the folder .*wal away"):
        EdgeArchive(edge, IDENTITY)
    (edge / "wal").rename(tmp_path / "damaged")
    archive = EdgeArchive(edge, IDENTITY)
    assert names(archive) == ["v"]
    archive.close()


def test_a_damaged_segment_is_not_called_a_journal(tmp_path):
    edge = tmp_path / "edge"
    EdgeArchive(edge, IDENTITY).close()
    for segment in (edge / "segments").glob("*/segment.json"):
        segment.write_text("{")
    with pytest.raises(StartupError, match=r"the archive in .* is damaged \(.*restore the folder from a backup"):
        EdgeArchive(edge, IDENTITY)


def test_a_folder_that_was_removed_does_not_become_an_empty_archive(archive, tmp_path):
    archive.put(*volume("v", unit(np.random.default_rng(20), 3)))
    (tmp_path / "edge").rename(tmp_path / "removed")
    kill(archive)
    for _ in range(2):
        with pytest.raises(ArchiveUnavailable, match="is gone; put the folder back"):
            names(archive)
    (tmp_path / "removed").rename(tmp_path / "edge")
    assert names(archive) == ["v"]


def test_the_fingerprint_survives_a_restart(archive):
    generator = np.random.default_rng(7)
    for name in ("a", "b", "a"):
        archive.put(*volume(name, unit(generator, 2)))
    before = archive.fingerprint()
    kill(archive)
    assert archive.fingerprint() == before != 0
    assert archive.restart_count == 1


def test_an_archive_of_another_layout_is_refused(tmp_path, monkeypatch):
    EdgeArchive(tmp_path / "edge", IDENTITY).close()
    monkeypatch.setattr(points, "LAYOUT_VERSION", points.LAYOUT_VERSION + 1)
    with pytest.raises(StartupError, match=r"made by another version of slicevote .* move the folder away"):
        EdgeStore(tmp_path / "edge", IDENTITY, GRAPHS)


def test_a_folder_without_an_archive_is_not_opened_without_an_identity(tmp_path):
    with pytest.raises(StartupError, match=r"the archive in .* is gone"):
        EdgeArchive(tmp_path / "edge", None)
    assert not (tmp_path / "edge").exists()


def test_a_full_disk_is_said_with_its_numbers(archive, monkeypatch):
    record, slices = volume("v", unit(np.random.default_rng(25), 3))
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=66_000_000))
    with pytest.raises(
        Overloaded, match="66 MB are free and 67 MB are needed, which includes a reserve of 67 MB"
    ) as full:
        archive.put(record, slices)
    assert full.value.reason == "DISK_FULL"
    with pytest.raises(Overloaded):
        archive.record_provenance(Provenance(NUMERICS))
    assert archive.is_empty()
    archive.delete("v")  # how room is made
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=68_000_000))
    archive.put(record, slices)


def test_the_killed_engine_is_restarted_and_nothing_acknowledged_is_lost(archive):
    generator = np.random.default_rng(12)
    put = [volume(f"v{number}", unit(generator, 20)) for number in range(5)]
    for record, slices in put:
        archive.put(record, slices)
        kill(archive)
    assert names(archive) == [f"v{number}" for number in range(5)]
    assert archive.occupancy().slice_count == 100
    assert archive.restart_count == 5


def test_a_call_in_flight_fails_as_unavailable(archive):
    generator = np.random.default_rng(13)
    for number in range(10):
        archive.put(*volume(f"v{number}", unit(generator, 200)))
    queries = unit(generator, 20_000)
    timer = threading.Timer(0.3, lambda: os.kill(archive.worker_pid, signal.SIGKILL))
    timer.start()

    def keep_asking() -> None:
        for _ in range(50):
            archive.nearest(queries, exact=True)

    with pytest.raises(ArchiveUnavailable, match="try again"):
        keep_asking()
    assert len(names(archive)) == 10


@pytest.mark.parametrize("seed", range(4))
def test_a_volume_is_there_or_it_is_not(tmp_path, seed):
    """Killed at any moment of a put, the archive holds the old volume or the new one, whole, and no leftovers."""
    generator = np.random.default_rng(100 + seed)
    archive = EdgeArchive(tmp_path / "edge", IDENTITY)
    archive.put(*volume("v", unit(generator, 700), state="old"))
    new = volume("v", unit(generator, 1500), state="new")
    timer = threading.Timer(generator.uniform(0.0, 0.12), lambda: os.kill(archive.worker_pid, signal.SIGKILL))
    timer.start()
    try:
        archive.put(*new)
        acknowledged = True
    except ArchiveUnavailable:
        acknowledged = False
    timer.join()
    with contextlib.suppress(ArchiveUnavailable):
        names(archive)  # where the put was faster than the timer, this is the call that notices
    record = archive.records(["v"])["v"]
    assert not acknowledged or record.labels["state"] == "new"
    expected = {"old": 700, "new": 1500}[record.labels["state"]]
    assert len(archive.slices(record).indices) == expected
    assert archive.occupancy().slice_count == expected
    archive.close()
    assert points_on_disk(tmp_path / "edge") == expected


def test_other_settings_build_the_graph_anew(tmp_path):
    generator = np.random.default_rng(15)
    archive = EdgeArchive(tmp_path / "edge", IDENTITY, dataclasses.replace(GRAPHS, m=8))
    for number in range(20):
        archive.put(*volume(f"v{number}", unit(generator, 50)))
    archive.optimize()
    archive.close()
    archive = EdgeArchive(tmp_path / "edge", IDENTITY, dataclasses.replace(GRAPHS, m=24))
    archive.optimize()
    archive.close()
    described = [path.read_text() for path in (tmp_path / "edge" / "segments").glob("*/segment.json")]
    assert any('"m":24' in text for text in described)
    assert not any('"m":8' in text for text in described)


def test_an_engine_that_cannot_be_started_now_is_started_later(archive, monkeypatch):
    archive.put(*volume("v", unit(np.random.default_rng(16), 3)))
    start = multiprocessing.context.SpawnProcess.start
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", no_memory)
    kill(archive)
    for _ in range(2):
        with pytest.raises(ArchiveUnavailable, match="the archive's engine stopped"):
            names(archive)
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    assert names(archive) == ["v"]


def no_memory(process) -> None:
    raise OSError(12, "Cannot allocate memory")


def points_on_disk(directory: Path) -> int:
    """Counts the slices that lie on the disk, whether or not they are anybody's."""
    store = EdgeStore(directory, IDENTITY, GRAPHS)
    try:
        return len(store._scroll(filters.kind_is(points.KIND_SLICE), with_payload=False))
    finally:
        store.close()


def test_a_program_that_does_not_close_its_archive_ends(tmp_path):
    program = (
        "from pathlib import Path\n"
        "from slicevote_server.archive.edge_archive import EdgeArchive\n"
        "from tests.support.archives import IDENTITY\n"
        "if __name__ == '__main__':\n"
        f"    archive = EdgeArchive(Path({str(tmp_path / 'edge')!r}), IDENTITY)\n"
        "    raise SystemExit(3)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    finished = subprocess.run([sys.executable, str(script)], timeout=60, check=False, env=environment)
    assert finished.returncode == 3
    EdgeArchive(tmp_path / "edge", IDENTITY).close()
