"""Many volumes at once, with a real server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from slicevote_client import Client, InvalidOption, ServerError, bulk, ingest_all, read_volumes
from slicevote_server.ingest import Ingest
from slicevote_server.service.server import ServerSettings
from slicevote_volumes import VolumeError

from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom, phantom_volume, write_nifti
from tests.support.servers import LocalServer, ServerProcess
from tests.support.streams import Peer, header_of, slice_of


@pytest.fixture
def volumes(tmp_path):
    return [phantom_volume(tmp_path, seed) for seed in range(6)]


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_all_volumes_are_ingested(client, volumes, parallel):
    outcomes = list(ingest_all(client, iter(volumes), parallel=parallel, labels={"site": "x"}))
    assert sorted(outcome.position for outcome in outcomes) == list(range(6))
    assert {outcome.position: outcome.volume.id for outcome in outcomes} == dict(
        enumerate(volume.id for volume in volumes)
    )
    assert all(outcome.result is not None and not outcome.was_there for outcome in outcomes)
    assert {record.volume_id for record in client.volumes(labels={"site": ["x"]})} == {volume.id for volume in volumes}


def test_several_are_under_way_at_a_time(client, volumes, monkeypatch):
    """Every ingest waits on its server's thread until another one is as far."""
    meeting = threading.Barrier(2, timeout=240)
    commit = Ingest.commit

    def meet(self):
        meeting.wait()
        return commit(self)

    monkeypatch.setattr(Ingest, "commit", meet)
    assert all(outcome.result is not None for outcome in ingest_all(client, volumes, parallel=2))


def test_what_is_there_is_left_out_if_wanted(server, client, volumes):
    list(ingest_all(client, volumes[:3]))
    fewer = phantom(3, slices=5)
    with Peer(server.address) as peer:
        peer.ingest(*(slice_of(*entry) for entry in enumerate(fewer)), volume=header_of(volumes[3].id, 5))
    outcomes = sorted(ingest_all(client, volumes, skip_existing=True), key=lambda outcome: outcome.position)
    assert [outcome.was_there for outcome in outcomes] == [True] * 3 + [False] * 3
    assert [outcome.result.replaced for outcome in outcomes[3:]] == [True, False, False]
    assert client.volume(volumes[3].id).slice_count == 12
    again = list(ingest_all(client, volumes, skip_existing=False))
    assert all(outcome.result is not None and outcome.result.replaced for outcome in again)


def test_what_is_in_one_archive_only_is_not_left_out(tmp_path, tiny_backbone, volumes):
    data = tmp_path / "data"
    with LocalServer(data, [tiny_backbone]) as server, Client(server.address) as client:
        list(ingest_all(client, volumes[:1]))
    second = write_tiny_backbone(tmp_path / "second.onnx", name="second", dimension=32, seed=5)
    with LocalServer(data, [tiny_backbone, second]) as server, Client(server.address) as client:
        for expected in (False, True):
            (outcome,) = ingest_all(client, volumes[:1], skip_existing=True)
            assert outcome.was_there is expected
        assert [archive["volume_count"] for archive in client.status()["archives"]] == [1, 1]


def test_one_that_fails_does_not_stop_the_others(client, volumes, tmp_path):
    path = write_nifti(tmp_path / "gone.nii.gz", phantom(9))
    (gone,) = read_volumes(path, modality="CT")
    path.unlink()
    outcomes = sorted(ingest_all(client, [volumes[0], gone, volumes[1]]), key=lambda outcome: outcome.position)
    assert isinstance(outcomes[1].error, VolumeError)
    assert not outcomes[1].was_there
    assert outcomes[0].result is not None
    assert outcomes[2].result is not None


def test_a_full_house_is_come_back_to(tmp_path, tiny_backbone, volumes):
    listening = ServerSettings(address="127.0.0.1:0", max_streams=1, grace_s=1)
    with (
        LocalServer(tmp_path / "data", [tiny_backbone], listening=listening) as server,
        Client(server.address) as client,
        Peer(server.address) as peer,
    ):
        held = peer.ingest_slowly(volume=header_of("held", 2))
        refused = threading.Event()
        threading.Thread(target=lambda: (refused.wait(60), held.call.cancel())).start()

        class Noticing(Client):
            def ingest(self, *arguments, **keywords):
                try:
                    return client.ingest(*arguments, **keywords)
                except ServerError as error:
                    if error.reason == "OVERLOADED":
                        refused.set()
                    raise

        with Noticing(server.address) as noticing:
            outcomes = list(ingest_all(noticing, volumes[:3], parallel=3))
        assert refused.is_set()
        assert [outcome.error for outcome in outcomes] == [None] * 3


def test_the_same_volume_twice_goes_one_after_the_other(client, volumes):
    outcomes = list(ingest_all(client, [volumes[0]] * 4, parallel=4))
    assert [outcome.position for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.result.replaced for outcome in outcomes] == [False, True, True, True]


def test_without_a_server_it_ends(volumes):
    with Client("127.0.0.1:1") as client, pytest.raises(ServerError, match="no server answers"):
        list(ingest_all(client, volumes))


def test_a_server_that_is_started_anew_is_waited_for(tmp_path, tiny_backbone, volumes):
    data, gone = tmp_path / "data", threading.Event()

    class Noticing(Client):
        def ingest(self, *arguments, **keywords):
            try:
                return super().ingest(*arguments, **keywords)
            except ServerError as error:
                if error.reason == "UNREACHABLE":
                    gone.set()
                raise

    with ServerProcess(data, tiny_backbone) as server, Noticing(server.address) as client:
        outcomes = ingest_all(client, volumes, parallel=1)
        assert next(outcomes).error is None
        server.kill()
        with ThreadPoolExecutor(1) as restarting:
            started = restarting.submit(
                lambda: gone.wait(60) and ServerProcess(data, tiny_backbone, "--listen", server.address)
            )
            assert [outcome.error for outcome in outcomes] == [None] * 5
            with started.result():
                assert gone.is_set()
                assert client.status()["archives"][0]["volume_count"] == 6


def test_a_server_that_stays_away_ends_it_with_every_outcome(tmp_path, tiny_backbone, volumes, monkeypatch):
    monkeypatch.setattr(bulk, "_PAUSES_S", (0.1, 0.1))
    with ServerProcess(tmp_path / "data", tiny_backbone) as server, Client(server.address) as client:
        outcomes = []

        def collect():
            for outcome in ingest_all(client, volumes, parallel=2):
                outcomes.append(outcome)
                server.kill()

        with pytest.raises(ServerError, match="no server answers"):
            collect()
    assert 2 <= len(outcomes) < 6
    assert outcomes[0].result is not None
    assert any(isinstance(outcome.error, ServerError) for outcome in outcomes)


def test_who_stops_asking_breaks_off(client, volumes, tmp_path, monkeypatch):
    """The long volume is held before its second half until nobody asks any more."""
    long, closed = phantom_volume(tmp_path, 30, slices=300), threading.Event()
    add = Ingest.add

    def hold(self, slices):
        if self.embedded_count > 100:
            assert closed.wait(60)
        add(self, slices)

    monkeypatch.setattr(Ingest, "add", hold)
    outcomes = ingest_all(client, [volumes[0], long], parallel=2)
    assert next(outcomes).position == 0
    outcomes.close()
    closed.set()
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("ingest") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [record.volume_id for record in client.volumes()] == [volumes[0].id]


def test_looking_whether_a_volume_is_there_is_tried_again_too(server, client, volumes, monkeypatch):
    list(ingest_all(client, volumes[:1]))
    monkeypatch.setattr(bulk, "_PAUSES_S", (0.1, 0.1))
    look, failures = client.volume, iter([True, False])

    def fail_once(*arguments, **keywords):
        if next(failures, False):
            raise ServerError("restarting", code="UNAVAILABLE", reason="ARCHIVE_UNAVAILABLE")
        return look(*arguments, **keywords)

    monkeypatch.setattr(client, "volume", fail_once)
    (outcome,) = ingest_all(client, volumes[:1], skip_existing=True)
    assert outcome.was_there


def test_a_bug_is_not_an_outcome(client, volumes, monkeypatch):
    ingest = client.ingest

    def stumble(volume, **keywords):
        if volume is volumes[1]:
            raise KeyError("a bug")
        return ingest(volume, **keywords)

    monkeypatch.setattr(client, "ingest", stumble)
    with pytest.raises(KeyError, match="a bug"):
        list(ingest_all(client, volumes[:4]))


def test_a_wrong_sampling_is_told_before_anything_is_sent(client, volumes):
    with pytest.raises(InvalidOption, match="is no sampling"):
        list(ingest_all(client, volumes, sampling="some"))
    assert list(client.volumes()) == []
