"""The contract of an archive, run over every engine behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import operator
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from slicevote_server.archive import filters, points
from slicevote_server.archive.edge import EdgeSettings, EdgeStore
from slicevote_server.archive.embedded import EmbeddedArchive
from slicevote_server.archive.interface import Archive, ArchiveIdentity, IndexedSlices, Scope, VolumeRecord
from slicevote_server.errors import ArchiveUnavailable, StartupError
from slicevote_server.runtime import Numerics

DIMENSION = 16
IDENTITY = ArchiveIdentity("tiny", "0" * 64, DIMENSION, "fp32", {"version": 1})
NUMERICS = Numerics("onnxruntime", "CPUExecutionProvider", "fp32")

# Graphs even over a few slices, so that what is tested is the graph and not the exhaustive comparison.
GRAPHS = EdgeSettings(indexing_threshold_kb=1, segment_count=1, optimize_after=10**9)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[EmbeddedArchive]:
    opened = EmbeddedArchive(tmp_path / "edge", IDENTITY, GRAPHS)
    yield opened
    opened.close()


def unit(generator: np.random.Generator, count: int) -> np.ndarray:
    vectors = generator.normal(size=(count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def kill(archive: EmbeddedArchive) -> None:
    """Kills the engine's process and waits until it is dead."""
    (process,) = (child for child in multiprocessing.active_children() if child.pid == archive.worker_pid)
    process.kill()
    process.join()


def volume(
    name: str, embeddings: np.ndarray, *, patient: str = "", **labels: str
) -> tuple[VolumeRecord, IndexedSlices]:
    count = len(embeddings)
    record = VolumeRecord(
        volume_id=name,
        modality="CT",
        labels=labels,
        patient_key=patient,
        source=f"{name}.nii",
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        positions_mm=tuple(5.0 * index for index in range(count + 1)),
        indexed_slices=tuple(range(count)),
        sop_instance_uids=tuple(f"1.2.3.{index}" for index in range(count)),
        blank_slice_count=1,
        ingested_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        revision=1 + secrets.randbelow(2**40),
    )
    return record, IndexedSlices(record.indexed_slices, embeddings, tuple(b"picture %d" % i for i in range(count)))


def test_is_an_archive(archive):
    assert isinstance(archive, Archive)
    assert archive.identity == IDENTITY
    assert archive.numerics() is None


def test_what_is_put_is_there(archive):
    record, slices = volume("v", unit(np.random.default_rng(0), 5), patient="p", region="chest")
    assert archive.put(record, slices) is False
    assert archive.records(["v", "w"]) == {"v": record}
    assert archive.list_ids() == ["v"]
    assert archive.thumbnails(record, [1, 4]) == {1: b"picture 1", 4: b"picture 4"}
    kept = archive.slices(record)
    assert kept.indices == slices.indices
    np.testing.assert_allclose(kept.embeddings, slices.embeddings, atol=1e-6)
    occupancy = archive.occupancy()
    assert (occupancy.volume_count, occupancy.slice_count) == (1, 5)
    assert occupancy.disk_bytes > 0


def test_a_volume_without_slices_is_there_too(archive):
    record, slices = volume("blank", np.empty((0, DIMENSION), np.float32))
    archive.put(record, slices)
    assert archive.records(["blank"]) == {"blank": record}
    assert archive.slices(record).embeddings.shape == (0, DIMENSION)


def test_putting_again_replaces(archive):
    generator = np.random.default_rng(1)
    first, second = volume("v", unit(generator, 9)), volume("v", unit(generator, 4))
    archive.put(*first)
    assert archive.put(*second) is True
    assert archive.occupancy().slice_count == 4
    assert archive.records(["v"])["v"].revision == second[0].revision
    found = archive.nearest(np.concatenate([first[1].embeddings, second[1].embeddings]))
    assert {hit.revision for hits in found.hits for hit in hits} == {second[0].revision}


def test_deleting(archive):
    generator = np.random.default_rng(2)
    kept, gone = volume("kept", unit(generator, 3)), volume("gone", unit(generator, 3))
    archive.put(*kept)
    archive.put(*gone)
    assert archive.delete("gone") == gone[0]
    assert archive.delete("gone") is None
    assert archive.list_ids() == ["kept"]
    assert {hit.volume_id for hits in archive.nearest(gone[1].embeddings).hits for hit in hits} == {"kept"}


def test_the_fingerprint_is_that_of_the_revisions(archive):
    generator = np.random.default_rng(7)

    def expected():
        return functools.reduce(operator.xor, archive.revisions().values(), 0)

    assert archive.is_empty()
    assert archive.fingerprint() == 0
    for name in ("a", "b", "a"):
        archive.put(*volume(name, unit(generator, 2)))
        assert archive.fingerprint() == expected() != 0
    kill(archive)
    with contextlib.suppress(ArchiveUnavailable):
        archive.fingerprint()
    assert archive.fingerprint() == expected()
    archive.delete("a")
    assert archive.fingerprint() == expected()
    assert not archive.is_empty()
    archive.delete("b")
    assert archive.is_empty()
    assert archive.fingerprint() == 0


def test_lists_by_label_in_order(archive):
    generator = np.random.default_rng(3)
    for name, region in (("c", "chest"), ("a", "chest"), ("b", "head")):
        archive.put(*volume(name, unit(generator, 1), region=region))
    assert archive.list_ids() == ["a", "b", "c"]
    assert archive.list_ids([("region", ("chest",))]) == ["a", "c"]
    assert archive.list_ids([("region", ("chest", "head")), ("site", ("x",))]) == []


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("optimized", [False, True])
def test_nearest_agrees_with_brute_force(archive, exact, optimized):
    generator = np.random.default_rng(4)
    put = [volume(f"v{number:02}", unit(generator, 30)) for number in range(20)]
    for entry in put:
        archive.put(*entry)
    if optimized:
        archive.optimize()
        assert archive.occupancy().unindexed_slice_count == 0
    queries = unit(generator, 40)
    found = archive.nearest(queries, neighbours=3, exact=exact)
    everything = np.concatenate([slices.embeddings for _, slices in put])
    cosines = queries @ everything.T
    order = np.argsort(-cosines, axis=1)[:, :3]
    expected = [[(f"v{place // 30:02}", place % 30) for place in row] for row in order.tolist()]
    assert [[(hit.volume_id, hit.slice_index) for hit in hits] for hits in found.hits] == expected
    assert [hits[0].similarity for hits in found.hits] == pytest.approx(cosines.max(axis=1).tolist(), abs=1e-5)
    assert found.exact is exact


@pytest.mark.parametrize("exact", [False, True])
def test_ties_go_to_the_lower_volume_and_the_lower_slice(archive, exact):
    generator = np.random.default_rng(5)
    (shared,) = unit(generator, 1)
    # The same slice in many places, more than the first look takes in; put in an order that is not the names'.
    for name in ("m", "z", "b", "k", "t", "c", "q"):
        embeddings = unit(generator, 6)
        embeddings[[2, 4]] = shared
        archive.put(*volume(name, embeddings))
    archive.optimize()
    (hits,) = archive.nearest(shared[None], neighbours=3, exact=exact).hits
    assert [(hit.volume_id, hit.slice_index) for hit in hits] == [("b", 2), ("b", 4), ("c", 2)]


def test_more_neighbours_than_slices(archive):
    record, slices = volume("v", unit(np.random.default_rng(6), 3))
    archive.put(record, slices)
    (hits,) = archive.nearest(slices.embeddings[:1], neighbours=10).hits
    assert len(hits) == 3


def test_scopes_lose_no_recall(archive):
    """A label that cuts the query's neighbourhood out of the graph: every query must still find what there is."""
    generator = np.random.default_rng(7)
    centre = unit(generator, 1)
    near = centre + 0.05 * unit(generator, 400)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    far = -centre + 0.3 * unit(generator, 60)
    far = (far / np.linalg.norm(far, axis=1, keepdims=True)).astype(np.float32)
    for number in range(10):
        archive.put(*volume(f"near{number}", near[40 * number : 40 * (number + 1)].astype(np.float32), modality="MR"))
    for number in range(3):
        archive.put(*volume(f"far{number}", far[20 * number : 20 * (number + 1)], modality="CT", patient=f"p{number}"))
    archive.optimize()
    queries = near[::8].astype(np.float32)
    by_label = archive.nearest(queries, scope=Scope(labels=(("modality", ("CT",)),)))
    assert by_label.exact
    expected = (queries @ far.T).max(axis=1)
    assert [hits[0].similarity for hits in by_label.hits] == pytest.approx(expected.tolist(), abs=1e-5)
    excluded = Scope(
        exclude_volume_ids=frozenset({f"near{n}" for n in range(10)}), exclude_patient_keys=frozenset({"p0", "p1"})
    )
    by_exclusion = archive.nearest(queries, scope=excluded)
    assert {hit.volume_id for hits in by_exclusion.hits for hit in hits} == {"far2"}
    assert all(by_exclusion.hits)


def test_excluding_ones_own_volume_keeps_the_graph(archive):
    generator = np.random.default_rng(8)
    for number in range(40):
        archive.put(*volume(f"v{number:02}", unit(generator, 10)))
    archive.optimize()
    found = archive.nearest(unit(generator, 5), scope=Scope(exclude_volume_ids=frozenset({"v07"})))
    assert not found.exact
    assert all(hit.volume_id != "v07" for hits in found.hits for hit in hits)


def test_nothing_to_find(archive):
    assert archive.nearest(unit(np.random.default_rng(9), 2)).hits == [[], []]


def test_refuses_what_would_stay_in_its_log(archive):
    record, slices = volume("v", unit(np.random.default_rng(10), 2))
    broken = slices.embeddings.copy()
    broken[0, 0] = np.nan
    for embeddings in (broken, slices.embeddings[:, :-1]):
        with pytest.raises(ValueError, match="finite"):
            archive.put(record, dataclasses.replace(slices, embeddings=embeddings))
    assert archive.list_ids() == []


def test_everything_is_there_after_opening_again(tmp_path):
    record, slices = volume("v", unit(np.random.default_rng(11), 7))
    archive = EmbeddedArchive(tmp_path / "edge", IDENTITY, GRAPHS)
    archive.record_numerics(NUMERICS)
    archive.put(record, slices)
    archive.close()
    archive = EmbeddedArchive(tmp_path / "edge", IDENTITY, GRAPHS)
    assert archive.records(["v"]) == {"v": record}
    archive.record_numerics(dataclasses.replace(NUMERICS, precision="bf16"))
    assert archive.numerics() == NUMERICS  # what it was made with is written once
    archive.delete("v")
    assert archive.numerics() is None  # and an empty one was made with nothing
    archive.record_numerics(dataclasses.replace(NUMERICS, precision="bf16"))
    archive.put(record, slices)
    assert archive.numerics().precision == "bf16"
    archive.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights_sha256": "1" * 64}, "weights sha256"),
        ({"backbone": "other"}, "backbone"),
        ({"intensity_policy": {"version": 2}}, "intensity policy"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_refuses_an_archive_made_with_something_else(tmp_path, change, named):
    EmbeddedArchive(tmp_path / "edge", IDENTITY).close()
    with pytest.raises(StartupError, match=f"made with something else.*{named}"):
        EmbeddedArchive(tmp_path / "edge", dataclasses.replace(IDENTITY, **change))
    EmbeddedArchive(tmp_path / "edge", IDENTITY).close()


def test_refuses_a_second_opening(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("slicevote_server.archive.edge._LOCK_TIMEOUT_S", 0.0)
    archive.put(*volume("v", unit(np.random.default_rng(17), 3)))
    with pytest.raises(StartupError, match=f"still in use by process {archive.worker_pid}: end that process"):
        EdgeStore(tmp_path / "edge", IDENTITY, GRAPHS)
    archive.put(*volume("w", unit(np.random.default_rng(18), 3)))
    assert archive.list_ids() == ["v", "w"]
    assert archive.restart_count == 0


def test_a_damaged_journal_is_named_and_can_be_given_up(tmp_path):
    edge = tmp_path / "edge"
    archive = EmbeddedArchive(edge, IDENTITY)
    archive.put(*volume("v", unit(np.random.default_rng(19), 3)))
    archive.close()
    for journal in (edge / "wal").iterdir():
        journal.write_bytes(journal.read_bytes()[:10])
    with pytest.raises(StartupError, match=r"the journal of the archive .* is damaged .* Move the folder .*wal away"):
        EmbeddedArchive(edge, IDENTITY)
    (edge / "wal").rename(tmp_path / "damaged")
    archive = EmbeddedArchive(edge, IDENTITY)
    assert archive.list_ids() == ["v"]
    archive.close()


def test_a_damaged_segment_is_not_called_a_journal(tmp_path):
    edge = tmp_path / "edge"
    EmbeddedArchive(edge, IDENTITY).close()
    for segment in (edge / "segments").glob("*/segment.json"):
        segment.write_text("{")
    with pytest.raises(StartupError, match=r"the archive in .* is damaged \(.*restore the folder from a backup"):
        EmbeddedArchive(edge, IDENTITY)


def test_a_folder_that_was_removed_does_not_become_an_empty_archive(archive, tmp_path):
    archive.put(*volume("v", unit(np.random.default_rng(20), 3)))
    (tmp_path / "edge").rename(tmp_path / "removed")
    kill(archive)
    for _ in range(2):
        with pytest.raises(ArchiveUnavailable, match="is gone; put the folder back"):
            archive.list_ids()
    (tmp_path / "removed").rename(tmp_path / "edge")
    assert archive.list_ids() == ["v"]


def test_the_killed_engine_is_restarted_and_nothing_acknowledged_is_lost(archive):
    generator = np.random.default_rng(12)
    put = [volume(f"v{number}", unit(generator, 20)) for number in range(5)]
    for record, slices in put:
        archive.put(record, slices)
        kill(archive)
    assert archive.list_ids() == [f"v{number}" for number in range(5)]
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
    assert len(archive.list_ids()) == 10


@pytest.mark.parametrize("seed", range(4))
def test_a_volume_is_there_or_it_is_not(tmp_path, seed):
    """Killed at any moment of a put, the archive holds the old volume or the new one, whole, and no leftovers."""
    generator = np.random.default_rng(100 + seed)
    archive = EmbeddedArchive(tmp_path / "edge", IDENTITY)
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
        archive.list_ids()  # where the put was faster than the timer, this is the call that notices
    record = archive.records(["v"])["v"]
    assert not acknowledged or record.labels["state"] == "new"
    expected = {"old": 700, "new": 1500}[record.labels["state"]]
    assert len(archive.slices(record).indices) == expected
    assert archive.occupancy().slice_count == expected
    archive.close()
    assert points_on_disk(tmp_path / "edge") == expected


def test_other_settings_build_the_graph_anew(tmp_path):
    generator = np.random.default_rng(15)
    archive = EmbeddedArchive(tmp_path / "edge", IDENTITY, dataclasses.replace(GRAPHS, m=8))
    for number in range(20):
        archive.put(*volume(f"v{number}", unit(generator, 50)))
    archive.optimize()
    archive.close()
    archive = EmbeddedArchive(tmp_path / "edge", IDENTITY, dataclasses.replace(GRAPHS, m=24))
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
            archive.list_ids()
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    assert archive.list_ids() == ["v"]


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
        "from tests.server.test_archives import IDENTITY, EmbeddedArchive\n"
        "if __name__ == '__main__':\n"
        f"    archive = EmbeddedArchive(Path({str(tmp_path / 'edge')!r}), IDENTITY)\n"
        "    raise SystemExit(3)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    finished = subprocess.run([sys.executable, str(script)], timeout=60, check=False, env=environment)
    assert finished.returncode == 3
    EmbeddedArchive(tmp_path / "edge", IDENTITY).close()
