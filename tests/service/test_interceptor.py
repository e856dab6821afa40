"""Every RPC of every service passes the interceptor: request ids, errors with details, and log lines."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from slicevote.v1 import archive_pb2, retrieval_pb2, sampling_pb2
from slicevote_server import errors
from slicevote_server.service.call import RequestIdFilter
from slicevote_server.service.errors import CODES, status_of

from tests.support.servers import LocalServer
from tests.support.streams import Peer, header_of

UNDECODABLE = b"\xff\xff\xff"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_backbone):
    with LocalServer(tmp_path_factory.mktemp("data") / "d", [tiny_backbone]) as server:
        yield server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def all_methods(channel) -> list[tuple[str, bool, bool]]:
    """Every method of every service that the server says it has: its path, and which sides stream."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    return [
        (f"/{name}/{method.name}", method.client_streaming, method.server_streaming)
        for name in database.get_services()
        for method in pool.FindServiceByName(name).methods
    ]


def call_with(channel, path: str, client_streams: bool, server_streams: bool, data: bytes) -> grpc.Call:
    """Call a method with bytes, and return the call once it has ended."""
    kind = f"{'stream' if client_streams else 'unary'}_{'stream' if server_streams else 'unary'}"
    method = getattr(channel, kind)(path, None, None)
    request = iter([data]) if client_streams else data
    try:
        if server_streams:
            call = method(request, timeout=240)
            list(call)
            return call
        return method.with_call(request, timeout=240)[1]
    except grpc.RpcError as error:
        return error


def details_of(call: grpc.Call) -> dict[str, object]:
    found = {}
    for detail in rpc_status.from_call(call).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RequestInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


def test_every_method_of_every_service_passes_the_interceptor(channel):
    methods = all_methods(channel)
    ours = {path for path, *_ in methods if "/slicevote." in path}
    assert ours == {
        f"/{service.full_name}/{method.name}"
        for file in (retrieval_pb2.DESCRIPTOR, archive_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert {path.rpartition("/")[2] for path, *_ in methods} >= {"Check", "Watch", "ServerReflectionInfo"}
    for path, client_streams, server_streams in methods:
        call = call_with(channel, path, client_streams, server_streams, UNDECODABLE)
        request_id = dict(call.initial_metadata())["x-request-id"]
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT, path
        assert details_of(call)["ErrorInfo"].reason == "UNDECODABLE", path
        assert details_of(call)["RequestInfo"].request_id == request_id, path


def test_the_client_may_choose_the_request_id(channel):
    status = channel.unary_unary("/slicevote.v1.ArchiveService/GetArchive", None, None)
    for chosen, kept in (("study-7.a", True), ("no spaces allowed", False), ("x" * 65, False)):
        _, call = status.with_call(b"", metadata=(("x-request-id", chosen),))
        assert (dict(call.initial_metadata())["x-request-id"] == chosen) is kept


def test_log_lines_carry_the_request_id_and_nothing_of_the_request(server, channel, caplog):
    caplog.handler.addFilter(RequestIdFilter())
    method = channel.unary_unary("/slicevote.v1.ArchiveService/GetVolume", None, None)
    request = archive_pb2.GetVolumeRequest(volume_id="mueller").SerializeToString()
    with caplog.at_level(logging.INFO), pytest.raises(grpc.RpcError):
        method(request, metadata=(("x-request-id", "abc"),))
    records = [record for record in caplog.records if record.name.startswith("slicevote_server.service")]
    assert [record.request_id for record in records] == ["abc"]
    assert "mueller" not in caplog.text


def test_an_unforeseen_failure_is_internal_without_its_text(server, channel, monkeypatch, caplog):
    patient = "Mueller^Anna"

    def fail(*_):
        raise RuntimeError(patient)

    monkeypatch.setattr(server.engine, "record", fail)
    method = channel.unary_unary("/slicevote.v1.ArchiveService/GetVolume", None, None)
    request = archive_pb2.GetVolumeRequest(volume_id="v").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        method(request, metadata=(("x-request-id", "abc"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "see request abc" in caught.value.details()
    assert "Mueller" not in caught.value.details() + caplog.text
    assert "RuntimeError" in caplog.text


def test_health_and_reflection_still_work(channel):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_every_error_of_the_engine_has_a_status(server):
    def kinds(kind: type) -> set[type]:
        return {kind}.union(*map(kinds, kind.__subclasses__()))

    assert kinds(errors.EngineError) - {errors.EngineError} == set(CODES)

    class QuotaExceeded(errors.Overloaded):
        """A new kind of an error takes the status of its base class."""

    status = status_of(QuotaExceeded("too much", retry_after_s=1.0), "id")
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def unknown_member(message_type: type, number: int = 99) -> object:
    """A message as a newer client sends it: with a member of its oneof that this server does not know."""
    return message_type.FromString(bytes([(number << 3 | 2) & 0x7F | 0x80, number >> 4, 0]))


@pytest.mark.parametrize(
    ("header", "field", "sentence"),
    [
        ({"sampling": unknown_member(sampling_pb2.Sampling)}, "header.sampling.scheme", "field 99"),
        ({"aggregation": unknown_member(retrieval_pb2.Aggregation)}, "header.aggregation.method", "field 99"),
        ({"index": 9}, "header.index", "VectorIndex 9"),
        (
            {"sampling": sampling_pb2.Sampling(random=sampling_pb2.RandomSlices(count=0))},
            "header.sampling.random.count",
            "1 to 20000",
        ),
        (
            {"filter": retrieval_pb2.VolumeFilter(exclude_series_instance_uids=["1.2\x1b[31m"])},
            "header.filter.exclude_series_instance_uids",
            "control characters",
        ),
        (
            {"filter": retrieval_pb2.VolumeFilter(exclude_volume_ids=["../x"])},
            "header.filter.exclude_volume_ids",
            "128 characters",
        ),
    ],
)
def test_what_the_server_does_not_know_is_refused_by_its_full_name(server, header, field, sentence):
    with Peer(server.address) as peer, pytest.raises(grpc.RpcError) as caught:
        peer.search(volume=header_of("q", 1), **header)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)["BadRequest"].field_violations[0].field == field
    assert sentence in caught.value.details()


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "a\x00", "line\u2028separator", "\x85"])
@pytest.mark.parametrize("place", ["source", "label", "patient_key", "series_instance_uid"])
def test_control_characters_are_refused_at_the_door(server, place, text):
    fields = {"labels": {"site": text}} if place == "label" else {place: text}
    with Peer(server.address) as peer, pytest.raises(grpc.RpcError) as caught:
        peer.ingest(volume=header_of("v", 1), **fields)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "control characters" in caught.value.details()
    assert text not in caught.value.details()
