"""Metrics through their door: a real server, real calls, and what HTTP gives of them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import code_pb2
from prometheus_client.parser import text_string_to_metric_families
from slicevote.v1 import archive_pb2
from slicevote_client import Client, ServerError
from slicevote_server.service import errors, interceptor, metrics_server
from slicevote_server.service.metrics import OUTCOMES
from slicevote_server.service.server import ServerSettings

from tests.support.phantoms import phantom, phantom_volume
from tests.support.servers import LocalServer, ServerProcess
from tests.support.streams import Peer, header_of, slice_of


@pytest.fixture
def server(tmp_path, tiny_backbone) -> Iterator[LocalServer]:
    listening = ServerSettings(address="127.0.0.1:0", grace_s=1, metrics_address="127.0.0.1:0")
    with LocalServer(tmp_path / "data", [tiny_backbone], listening=listening) as running:
        yield running


def read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=240) as answer:
        return answer.read().decode()


def samples(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(read(address))
        for sample in family.samples
    }


def value(address: str, name: str, **labels: str) -> float | None:
    return samples(address).get((name, frozenset(labels.items())))


def expect(address: str, name: str, expected: float, **labels: str) -> None:
    """Waits for a sample's value: a call is counted when its client may have its answer already."""
    deadline = time.monotonic() + 240
    while (found := value(address, name, **labels)) != expected:
        assert time.monotonic() < deadline, f"{name}{labels} is {found} and not {expected}"
        time.sleep(0.05)


def test_calls_slices_and_archives_are_counted(server, client, tmp_path):
    at = server.metrics_address
    volumes = [phantom_volume(tmp_path, seed, blank=(0, 1)) for seed in range(3)]
    for volume in volumes:
        client.ingest(volume)
    client.search(volumes[0], sampling="even:6")
    with pytest.raises(ServerError):
        client.volume("nobody")
    expect(at, "slicevote_calls_total", 1, method="GetVolume", code="NOT_FOUND")
    expect(at, "slicevote_calls_total", 3, method="IngestVolume", code="OK")
    expect(at, "slicevote_calls_total", 1, method="Search", code="OK")
    expect(at, "slicevote_call_seconds_count", 1, method="Search")
    expect(at, "slicevote_open_calls", 0, method="Search")
    expect(at, "slicevote_slices_total", 30, method="IngestVolume", outcome="used")
    expect(at, "slicevote_slices_total", 6, method="IngestVolume", outcome="blank")
    searched = [value(at, "slicevote_slices_total", method="Search", outcome=outcome) for outcome in ("used", "blank")]
    assert sum(searched) == 6
    assert value(at, "slicevote_stage_seconds_total", method="Search", stage="embedding") > 0
    expect(at, "slicevote_embedded_slices_total", 30 + searched[0], backbone="tiny")
    assert value(at, "slicevote_embedded_batches_total", backbone="tiny") > 0
    expect(at, "slicevote_embedder_waiting_slices", 0, backbone="tiny")
    expect(at, "slicevote_archive_up", 1, backbone="tiny")
    expect(at, "slicevote_archive_volumes", 3, backbone="tiny")
    expect(at, "slicevote_archive_slices", 30, backbone="tiny")
    assert value(at, "slicevote_archive_disk_bytes", backbone="tiny") > 0
    expect(at, "slicevote_lsh_ready", 1, backbone="tiny")
    expect(at, "slicevote_stream_limit", 32)


def test_the_provider_in_use_is_told(server, client, tmp_path):
    client.ingest(phantom_volume(tmp_path, 1))
    numerics = client.status()["archives"][0]["numerics"]
    at = server.metrics_address
    assert numerics["provider"] == "CPUExecutionProvider"
    expect(at, "slicevote_backbone_info", 1, backbone="tiny", **numerics)
    expect(at, "slicevote_archive_info", 1, backbone="tiny", **numerics)
    expect(at, "slicevote_numerics_differ", 0, backbone="tiny")


def test_a_client_that_hangs_up_with_its_answer_was_answered(server, client, tmp_path):
    for seed in range(20):
        client.ingest(phantom_volume(tmp_path, seed))
    for _ in range(20):
        client.search(phantom_volume(tmp_path, 0), sampling="even:3")
    with Peer(server.address) as peer:
        for _ in range(10):
            search = peer.search_slowly(volume=header_of("q", 1))
            search.send(slice_of(0, phantom(1)[0]))
            while next(search.call).WhichOneof("message") != "ranking":
                pass
            search.call.cancel()
    expect(server.metrics_address, "slicevote_calls_total", 20, method="IngestVolume", code="OK")
    expect(server.metrics_address, "slicevote_calls_total", 30, method="Search", code="OK")


def test_calls_that_went_away_are_counted_as_such(server):
    with Peer(server.address) as peer:
        stream = peer.ingest_slowly(volume=header_of("v", 2))
        expect(server.metrics_address, "slicevote_open_calls", 1, method="IngestVolume")
        stream.call.cancel()
        expect(server.metrics_address, "slicevote_calls_total", 1, method="IngestVolume", code="CANCELLED")
        expect(server.metrics_address, "slicevote_open_calls", 0, method="IngestVolume")


def test_an_engine_that_died_is_seen(server, client, tmp_path):
    volume, at = phantom_volume(tmp_path, 1), server.metrics_address
    client.ingest(volume)
    archive = server.engine.backbones[0].archive
    os.kill(archive.worker_pid, signal.SIGKILL)
    expect(at, "slicevote_archive_engine_restarts_total", 1, backbone="tiny")
    expect(at, "slicevote_archive_volumes", 1, backbone="tiny")
    expect(at, "slicevote_archive_up", 1, backbone="tiny")


def test_an_archive_that_is_busy_holds_no_scrape_up(server, client, tmp_path, monkeypatch):
    client.ingest(phantom_volume(tmp_path, 1))
    monkeypatch.setattr("slicevote_server.service.metrics._ANSWER_S", 0.1)
    archive = server.engine.backbones[0].archive
    with archive._worker._lock:
        expect(server.metrics_address, "slicevote_archive_up", 0, backbone="tiny")
        assert value(server.metrics_address, "slicevote_archive_volumes", backbone="tiny") is None
        expect(server.metrics_address, "slicevote_calls_total", 1, method="IngestVolume", code="OK")
    monkeypatch.undo()
    expect(server.metrics_address, "slicevote_archive_volumes", 1, backbone="tiny")


def test_an_lsh_index_that_is_busy_does_not_make_the_archive_look_down(server, client, tmp_path, monkeypatch):
    client.ingest(phantom_volume(tmp_path, 1))
    monkeypatch.setattr("slicevote_server.service.metrics._ANSWER_S", 1.0)
    with server.engine.backbones[0].lsh._lock:
        expect(server.metrics_address, "slicevote_archive_up", 1, backbone="tiny")
        expect(server.metrics_address, "slicevote_lsh_ready", 1, backbone="tiny")


def test_an_archive_that_cannot_be_asked_fails_no_scrape(server, monkeypatch, caplog, capfd):
    secret = "^".join(["Doe", "Jane"])

    def fail():
        raise RuntimeError(secret)

    monkeypatch.setattr(server.engine.backbones[0].archive, "occupancy", fail)
    expect(server.metrics_address, "slicevote_archive_up", 0, backbone="tiny")
    assert secret not in caplog.text + read(server.metrics_address) + "".join(capfd.readouterr())
    assert "could not be asked how it is: RuntimeError" in caplog.text


def test_some_metrics_can_be_asked_for(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics?name[]=slicevote_archive_volumes") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert [family.name for family in families] == ["slicevote_archive_volumes"]


def test_calls_past_their_deadline_are_counted_as_such(server, monkeypatch):
    # How much earlier the client's clock started depends on how busy the machine is.
    monkeypatch.setattr(interceptor, "_DEADLINE_SLACK_S", 60)
    over = threading.Event()
    with Peer(server.address) as peer:
        header = archive_pb2.IngestVolumeRequest(header=archive_pb2.IngestHeader(volume=header_of("v", 2)))

        def header_and_silence():
            yield header
            over.wait(240)

        stream = peer.archive.IngestVolume(header_and_silence(), timeout=5)
        assert next(stream).WhichOneof("message") == "plan"
        with pytest.raises(grpc.RpcError):
            list(stream)
        over.set()
    expect(server.metrics_address, "slicevote_calls_total", 1, method="IngestVolume", code="DEADLINE_EXCEEDED")


def test_every_code_of_an_error_is_a_zero_before_it_happens(server):
    assert {code_pb2.Code.Name(code) for code in errors.CODES.values()} < set(OUTCOMES)
    for code in OUTCOMES:
        assert value(server.metrics_address, "slicevote_calls_total", method="Search", code=code) == 0


def test_idle_connections_take_nothing_from_the_scrapes_that_come_later(server, monkeypatch):
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.5)
    host, _, port = server.metrics_address.rpartition(":")
    before = threading.active_count()
    connections = [socket.create_connection((host, int(port))) for _ in range(40)]
    deadline = time.monotonic() + 240
    while True:
        try:
            assert "slicevote_calls_total" in read(server.metrics_address)
            break
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert threading.active_count() < before + 20
    for connection in connections:
        connection.close()


def test_nothing_of_a_patient_is_in_the_metrics(server, client, tmp_path):
    patient = "Doe.Jane"
    with Peer(server.address) as peer:
        volume = phantom_volume(tmp_path, 1, slices=2)
        peer.ingest(
            *(slice_of(entry.index, entry.pixels) for entry in (volume.slice(0), volume.slice(1))),
            volume=header_of(patient, 2),
            labels={"note": patient},
            patient_key=patient,
            source=patient,
        )
    expect(server.metrics_address, "slicevote_archive_volumes", 1, backbone="tiny")
    assert patient not in read(server.metrics_address)


def test_the_server_says_where_its_metrics_are(tmp_path, tiny_backbone):
    with ServerProcess(tmp_path / "data", tiny_backbone, "--metrics", "127.0.0.1:0") as server:
        address = server.log.split("metrics at http://")[1].split("/")[0]
        expect(address, "slicevote_archive_volumes", 0, backbone="tiny")
        assert "nothing guards" not in server.log


def test_searches_decided_early_are_counted(server, client, tmp_path):
    volume = phantom_volume(tmp_path, 20, slices=150)
    client.ingest(volume)
    ranking = client.search(volume, include_own=True, stop_when_decided=True)
    assert ranking.decided_early
    expect(server.metrics_address, "slicevote_searches_decided_early_total", 1)


def test_without_the_option_nothing_listens(tmp_path, tiny_backbone):
    with LocalServer(tmp_path / "data", [tiny_backbone]) as server, Client(server.address) as client:
        assert server.metrics_address is None
        assert client.status()["archives"]
