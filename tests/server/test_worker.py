"""The process of an archive: what happens where its store fails, dawdles, or is not closed."""

from __future__ import annotations

import functools
import threading
import time

import numpy as np
import pytest
from slicevote_server.archive.edge_store import EdgeStore
from slicevote_server.archive.interface import VolumeRecord
from slicevote_server.archive.worker import Worker, writes
from slicevote_server.errors import ArchiveUnavailable

from tests.support.archives import GRAPHS, IDENTITY, unit, volume


def test_a_write_that_fails_half_way_leaves_the_truth(tmp_path):
    """The engine is opened anew: what it then holds and what it says it holds are the same."""
    generator = np.random.default_rng(14)
    worker = Worker(functools.partial(FailingStore, tmp_path / "edge", IDENTITY, GRAPHS), name="failing")
    kept, gone = volume("kept", unit(generator, 3)), volume("gone", unit(generator, 3))
    worker.call(FailingStore.put, *kept)
    worker.call(FailingStore.put, *gone)
    with pytest.raises(RuntimeError, match="no room"):
        worker.call(FailingStore.delete, "gone")
    listed = worker.call(FailingStore.list_ids, limit=10).volume_ids
    assert listed in (("kept",), ("gone", "kept"))
    assert worker.call(FailingStore.occupancy).slice_count == 3 * len(listed)
    assert worker.restart_count == 1
    worker.close()


class FailingStore(EdgeStore):
    """A store whose disk is full when something is deleted."""

    @writes
    def delete(self, volume_id: str) -> VolumeRecord | None:
        super().delete(volume_id)
        raise RuntimeError("no room")


class SlowStore:
    """A store that takes long over everything."""

    def wants_optimizing(self, *, idle: bool) -> bool:
        return False

    def optimize(self) -> None: ...

    def close(self) -> None: ...

    def dawdle(self) -> None:
        time.sleep(120)


def test_a_busy_store_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr("slicevote_server.archive.worker._CLOSE_S", 0.5)
    worker = Worker(SlowStore, name="slow")
    failures = []

    def call() -> None:
        try:
            worker.call(SlowStore.dawdle)
        except ArchiveUnavailable as error:
            failures.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    while not worker._lock.locked():
        time.sleep(0.01)
    worker.close()
    caller.join(30)
    assert failures == ["the archive is closed"]
    assert worker.restart_count == 0
