"""Many volumes at once, with a real server."""

from __future__ import annotations

import threading

import pytest
from slicevote_client import Client, ServerError, ingest_all, read_volumes
from slicevote_server.ingestion import Ingest
from slicevote_server.service.server import ServerSettings
from slicevote_volumes import VolumeError

from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom, phantom_volume, write_nifti
from tests.support.servers import LocalServer
from tests.support.streams import Peer, header_of, slice_of


@pytest.fixture
def volumes(tmp_path):
    return [phantom_volume(tmp_path, seed) for seed in range(6)]


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_all_volumes_are_ingested(client, volumes, parallel):
    outcomes = list(ingest_all(client, iter(volumes), parallel=parallel, labels={"site": "x"}))
    assert sorted(outcome.place for outcome in outcomes) == list(range(6))
    assert {outcome.place: outcome.volume.id for outcome in outcomes} == dict(
        enumerate(volume.id for volume in volumes)
    )
    assert all(outcome.result is not None and not outcome.was_there for outcome in outcomes)
    assert {record.volume_id for record in client.volumes(labels={"site": ["x"]})} == {volume.id for volume in volumes}


def test_several_are_under_way_at_a_time(client, volumes, monkeypatch):
    """Every ingest waits on its server's thread until another one is as far."""
    meeting = threading.Barrier(2, timeout=30)
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
    outcomes = sorted(ingest_all(client, volumes, skip_existing=True), key=lambda outcome: outcome.place)
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
    outcomes = sorted(ingest_all(client, [volumes[0], gone, volumes[1]]), key=lambda outcome: outcome.place)
    assert isinstance(outcomes[1].error, VolumeError)
    assert not outcomes[1].was_there
    assert outcomes[0].result is not None
    assert outcomes[2].result is not None


def test_a_full_house_is_come_back_to(tmp_path, tiny_backbone, volumes):
    listening = ServerSettings(address="127.0.0.1:0", max_streams=1, grace_s=1)
    with (
        LocalServer(tmp_path / "data", [tiny_backbone], listening=listening) as server,
        Client(server.address) as client,
    ):
        outcomes = list(ingest_all(client, volumes[:3], parallel=3))
        assert [outcome.error for outcome in outcomes] == [None] * 3


def test_without_a_server_it_ends(volumes):
    with Client("127.0.0.1:1") as client, pytest.raises(ServerError, match="no server answers"):
        list(ingest_all(client, volumes))
