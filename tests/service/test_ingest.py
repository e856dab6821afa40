"""Ingests through the door: acknowledged is durable, half is nothing, again is instead."""

from __future__ import annotations

import os
import signal
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from slicevote.v1 import archive_pb2, retrieval_pb2
from slicevote_client import Client, ServerError
from slicevote_server.engine import EngineSettings

from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom, phantom_volume
from tests.support.servers import LocalServer, ServerProcess
from tests.support.streams import Peer, header_of, slice_of


def test_what_is_ingested_is_there(client, tmp_path):
    volume = phantom_volume(tmp_path, 1, slices=8, blank=(7,))
    progress = []
    result = client.ingest(
        volume, labels={"body_region": "chest"}, source="somewhere", on_progress=lambda *seen: progress.append(seen)
    )
    record = client.volume(volume.id)
    assert record == result.volume
    assert not result.replaced
    assert record.labels == {"modality": "CT", "body_region": "chest"}
    assert record.source == "somewhere"
    assert (record.slice_count, record.indexed_slice_count, record.blank_slice_count) == (8, 7, 1)
    assert record.slice_positions_mm == pytest.approx(tuple(5.0 * i for i in range(8)))
    assert progress[-1] == (8, 8)
    slices = client.slices(volume.id, thumbnails=[2, 7])
    assert [entry.index for entry in slices] == list(range(7))
    assert slices[2].thumbnail_webp[:4] == b"RIFF"
    assert slices[3].thumbnail_webp == b""
    assert slices[3].position_mm == pytest.approx(15)
    assert [found.volume_id for found in client.volumes()] == [volume.id]


def test_thumbnails_can_be_switched_off(tmp_path, tiny_backbone):
    without = EngineSettings(thumbnails=False)
    with LocalServer(tmp_path / "data", [tiny_backbone], without) as server, Client(server.address) as client:
        volume = phantom_volume(tmp_path, 1)
        client.ingest(volume)
        assert all(entry.thumbnail_webp == b"" for entry in client.slices(volume.id, thumbnails=[0, 1]))


def test_the_same_volume_again_replaces_it(client, tmp_path):
    volume = phantom_volume(tmp_path, 1)
    first = client.ingest(volume, labels={"state": "first"})
    second = client.ingest(volume, labels={"state": "second"})
    assert second.replaced
    assert second.volume.revision != first.volume.revision
    (archive,) = client.status()["archives"]
    assert (archive["volume_count"], archive["slice_count"]) == (1, 12)
    assert client.volume(volume.id).labels["state"] == "second"


def test_a_sampled_ingest_indexes_the_sample(client, tmp_path):
    volume = phantom_volume(tmp_path, 1, slices=12)
    record = client.ingest(volume, sampling="nth:4").volume
    assert (record.slice_count, record.indexed_slice_count) == (12, 3)
    assert [entry.index for entry in client.slices(volume.id)] == [0, 4, 8]


def test_deleting(client, tmp_path):
    volume = phantom_volume(tmp_path, 1)
    client.ingest(volume)
    assert client.delete(volume.id).volume_id == volume.id
    for call in (client.volume, client.delete):
        with pytest.raises(ServerError, match="there is no volume") as caught:
            call(volume.id)
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "VOLUME_UNKNOWN")
    assert client.status()["archives"][0]["slice_count"] == 0


def test_listing_goes_page_by_page_and_by_label(server, client):
    pictures = phantom(1, slices=2)
    with Peer(server.address) as peer:
        for number in range(7):
            peer.ingest(
                *(slice_of(index, picture) for index, picture in enumerate(pictures)),
                volume=header_of(f"v{number}", 2),
                labels={"parity": str(number % 2)},
            )
        names, token = [], ""
        while True:
            page = peer.archive.ListVolumes(archive_pb2.ListVolumesRequest(page_size=3, page_token=token))
            names.append([volume.volume_id for volume in page.volumes])
            assert page.total_count == 7
            token = page.next_page_token
            if not token:
                break
    assert names == [["v0", "v1", "v2"], ["v3", "v4", "v5"], ["v6"]]
    assert [volume.volume_id for volume in client.volumes(labels={"parity": ["1"]})] == ["v1", "v3", "v5"]


def test_listing_by_the_beginning_of_a_name(server):
    pictures = phantom(1, slices=1)
    with Peer(server.address) as peer:
        for name in ("ab1", "ab2", "ab3", "b"):
            peer.ingest(slice_of(0, pictures[0]), volume=header_of(name, 1))
        request = archive_pb2.ListVolumesRequest(page_size=2, volume_id_prefix="ab")
        first = peer.archive.ListVolumes(request)
        assert ([volume.volume_id for volume in first.volumes], first.total_count) == (["ab1", "ab2"], 3)
        request.page_token = first.next_page_token
        last = peer.archive.ListVolumes(request)
        assert ([volume.volume_id for volume in last.volumes], last.next_page_token) == (["ab3"], "")
        for field in ("page_token", "volume_id_prefix"):
            with pytest.raises(grpc.RpcError) as caught:
                peer.archive.ListVolumes(archive_pb2.ListVolumesRequest(**{field: "no name"}))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in caught.value.details()


def test_patient_keys_are_hashes_and_group_volumes(server, tmp_path):
    from dataclasses import replace

    first = replace(phantom_volume(tmp_path, 1), patient_id="Doe^Jane 42")
    second = replace(phantom_volume(tmp_path, 2), patient_id="Doe^Jane 42")
    other = replace(phantom_volume(tmp_path, 3), patient_id="other")
    with Client(server.address, secret=b"a secret") as client:
        keys = [client.ingest(volume).volume.patient_key for volume in (first, second, other)]
        assert keys[0] == keys[1] != keys[2]
        assert "Jane" not in keys[0]
        assert [match.volume.volume_id for match in client.search(first).matches] == [other.id]
        for volume in (first, second, other):
            client.delete(volume.id)
    # An archive without volumes takes keys of any secret.
    with Client(server.address, secret=b"another secret") as client:
        assert client.ingest(first).volume.patient_key != keys[0]


def test_one_ingest_feeds_all_backbones(tmp_path, tiny_backbone):
    second = write_tiny_backbone(tmp_path / "second.onnx", name="second", dimension=32, seed=5)
    with LocalServer(tmp_path / "data", [tiny_backbone, second]) as server, Client(server.address) as client:
        volume = phantom_volume(tmp_path, 1)
        client.ingest(volume)
        assert [archive["slice_count"] for archive in client.status()["archives"]] == [12, 12]
        for name in ("tiny", "second"):
            ranking = client.search(volume, backbone=name, include_own=True)
            assert (ranking.backbone, ranking.matches[0].volume.volume_id) == (name, volume.id)
        with pytest.raises(ServerError, match="no backbone 'third'; it has tiny, second") as caught:
            client.search(volume, backbone="third")
        assert caught.value.code == "NOT_FOUND"
        client.delete(volume.id)
        assert [archive["volume_count"] for archive in client.status()["archives"]] == [0, 0]


def test_a_half_ingest_leaves_nothing(server, client):
    pictures = phantom(1, slices=10)
    with Peer(server.address) as peer:
        # Ended by the client: named as what it is.
        half = peer.ingest_slowly(volume=header_of("half", 10))
        for index in half.plan.slice_indices[:6]:
            half.send(slice_of(index, pictures[index]))
        half.half_close()
        with pytest.raises(grpc.RpcError) as caught:
            list(half.call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "missing: 2, 4, 6, 8" in caught.value.details()
        # Cut off: the caller is gone.
        cut = peer.ingest_slowly(volume=header_of("cut", 10))
        for index in cut.plan.slice_indices[:6]:
            cut.send(slice_of(index, pictures[index]))
        next(cut.call)
        cut.call.cancel()
    assert list(client.volumes()) == []
    assert client.status()["archives"][0]["slice_count"] == 0


def test_a_half_ingest_leaves_what_was_there(server, client, tmp_path):
    volume = phantom_volume(tmp_path, 3)
    before = client.ingest(volume).volume
    with Peer(server.address) as peer:
        half = peer.ingest_slowly(volume=header_of(volume.id, 12))
        half.send(slice_of(half.plan.slice_indices[0], phantom(9)[0]))
        half.half_close()
        with pytest.raises(grpc.RpcError):
            list(half.call)
    assert client.volume(volume.id) == before
    assert client.search(volume, include_own=True).matches[0].votes == 12


def test_two_ingests_of_one_volume_at_once_leave_one_whole_volume(server, client):
    stacks = {seed: phantom(seed, slices=20) for seed in (1, 2)}
    with Peer(server.address) as peer:
        running = {seed: peer.ingest_slowly(volume=header_of("v", 20), labels={"seed": str(seed)}) for seed in stacks}
        for place in range(20):
            for seed, ingest in running.items():
                index = ingest.plan.slice_indices[place]
                ingest.send(slice_of(index, stacks[seed][index]))
        for ingest in running.values():
            assert list(ingest.call)[-1].WhichOneof("message") == "result"
        seed = int(client.volume("v").labels["seed"])
        search = peer.search(*(slice_of(i, stacks[seed][i]) for i in range(20)), volume=header_of("q", 20))
    assert [hit.match_slice for hit in search[-1].ranking.matches[0].hits] == list(range(20))
    assert client.status()["archives"][0]["slice_count"] == 20


def test_the_engine_killed_in_the_middle(server, client, tmp_path):
    """Its process dies: what was acknowledged is there, and the next call is answered."""
    kept = phantom_volume(tmp_path, 1)
    client.ingest(kept)
    os.kill(server.engine.backbones[0].archive.worker_pid, signal.SIGKILL)
    time.sleep(0.2)
    assert client.volume(kept.id).indexed_slice_count == 12
    assert client.search(kept, include_own=True).matches[0].votes == 12
    assert client.status()["archives"][0]["engine_restart_count"] == 1


def test_calls_in_flight_fail_as_unavailable_with_a_time_to_come_back(server, client, tmp_path, monkeypatch):
    volume = phantom_volume(tmp_path, 1)
    client.ingest(volume)
    archive = server.engine.backbones[0].archive
    # The engine is stopped, so that the call is in flight for sure, and then killed.
    os.kill(archive.worker_pid, signal.SIGSTOP)
    with Peer(server.address) as peer:
        call = peer.archive.GetVolume.future(archive_pb2.GetVolumeRequest(volume_id=volume.id), timeout=240)
        time.sleep(0.3)
        os.kill(archive.worker_pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    packed = rpc_status.from_call(caught.value).details
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in packed)
    assert client.volume(volume.id).volume_id == volume.id


def test_the_server_killed_in_the_middle_of_an_ingest(tmp_path, tiny_backbone):
    """As in a power cut: acknowledged volumes are whole, the half one is not there."""
    data, pictures = tmp_path / "data", phantom(1, slices=40)
    with ServerProcess(data, tiny_backbone) as server, Peer(server.address) as peer:
        for number in range(3):
            peer.ingest(*(slice_of(i, p) for i, p in enumerate(pictures)), volume=header_of(f"kept{number}", 40))
        half = peer.ingest_slowly(volume=header_of("half", 40))
        for index in half.plan.slice_indices[:25]:
            half.send(slice_of(index, pictures[index]))
        next(half.call)
        server.kill()
        with pytest.raises(grpc.RpcError) as caught:
            list(half.call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with ServerProcess(data, tiny_backbone) as server, Client(server.address) as client:
        assert [volume.volume_id for volume in client.volumes()] == ["kept0", "kept1", "kept2"]
        assert client.status()["archives"][0]["slice_count"] == 120


@pytest.mark.parametrize("signalled", ["server", "all its processes"])
def test_the_server_ends_in_order_and_finishes_what_is_under_way(tmp_path, tiny_backbone, signalled):
    """A service manager tells the server alone to end, or every process of the service."""
    data, pictures = tmp_path / "data", phantom(1, slices=10)
    with ServerProcess(data, tiny_backbone) as server, Peer(server.address) as peer:
        ingest = peer.ingest_slowly(volume=header_of("v", 10))
        if signalled == "server":
            server.process.send_signal(signal.SIGTERM)
        else:
            os.killpg(server.process.pid, signal.SIGTERM)
        time.sleep(0.5)
        for index in ingest.plan.slice_indices:
            ingest.send(slice_of(index, pictures[index]))
        assert list(ingest.call)[-1].result.volume.volume_id == "v"
        assert server.process.wait(30) == 0
        assert "started again" not in server.log
    with ServerProcess(data, tiny_backbone) as server, Client(server.address) as client:
        assert client.volume("v").indexed_slice_count == 10


def test_a_modality_in_lower_case_is_the_same_modality(tmp_path, tiny_backbone):
    """Windowed in HU, and found by the filter."""
    # Half of the values are above the window.
    slices = [slice_of(index, 3 * picture + 2000) for index, picture in enumerate(phantom(4, slices=3))]
    with LocalServer(tmp_path / "d", [tiny_backbone]) as server, Peer(server.address) as peer:
        record = peer.ingest(*slices, volume=header_of("ct", 3, modality=" ct"))[-1].result.volume
        assert (record.modality, dict(record.labels)) == ("CT", {"modality": "CT"})
        for written in ("CT", "ct"):
            condition = retrieval_pb2.LabelCondition(key="modality", any_of=[written])
            ranking = peer.search(
                *slices,
                volume=header_of("q", 3, modality=written),
                filter=retrieval_pb2.VolumeFilter(labels=[condition]),
            )[-1].ranking
            assert ranking.matches[0].similarity_mean == pytest.approx(1.0, abs=1e-4)
        other = peer.search(*slices, volume=header_of("q", 3, modality="MR"))[-1].ranking
        assert other.matches[0].similarity_mean < 0.999


def test_a_label_that_contradicts_the_modality_is_refused(server):
    for label, sentence in (("MR", "differs from header.volume.modality"), ("M/R", "DICOM code")):
        with Peer(server.address) as peer, pytest.raises(grpc.RpcError) as caught:
            peer.ingest(volume=header_of("v", 1, modality="CT"), labels={"modality": label})
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in caught.value.details()
