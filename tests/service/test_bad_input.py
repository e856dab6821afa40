"""Bad input: each with its code, its reason, and a sentence that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from slicevote.v1 import archive_pb2, retrieval_pb2, sampling_pb2, volume_pb2
from slicevote_server.service.server import ServerSettings
from slicevote_server.service.slice_stream import StreamTimeouts

from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom
from tests.support.servers import LocalServer, ServerProcess
from tests.support.streams import Peer, header_of, slice_of

PICTURES = phantom(1, slices=3)


@pytest.fixture(scope="module")
def peer(tmp_path_factory, tiny_backbone):
    with LocalServer(tmp_path_factory.mktemp("data") / "d", [tiny_backbone]) as server, Peer(server.address) as peer:
        peer.ingest(*(slice_of(i, p) for i, p in enumerate(PICTURES)), volume=header_of("there", 3))
        yield peer


def refusal(call) -> tuple[grpc.RpcError, str, str]:
    """Makes a call that must fail; gives the error, its reason and the field it names."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    reason = field = ""
    for detail in rpc_status.from_call(caught.value).details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(request):
            field = request.field_violations[0].field
    return caught.value, reason, field


def changed(index: int, **fields: object) -> volume_pb2.Slice:
    """A good slice with some fields of its pixels changed."""
    image = slice_of(index, PICTURES[index])
    for name, value in fields.items():
        setattr(image.pixels, name, value)
    return image


def named(uid: str) -> volume_pb2.Slice:
    image = slice_of(1, PICTURES[1])
    image.sop_instance_uid = uid
    return image


def not_finite() -> volume_pb2.Slice:
    values = PICTURES[1].astype("<f4")
    values[0, 0] = np.nan
    return changed(1, element_type=volume_pb2.ELEMENT_TYPE_FLOAT32, data=values.tobytes())


GOOD = slice_of(0, PICTURES[0])

SLICES = {
    "no picture": (volume_pb2.Slice(index=1), "SLICE_EMPTY", "slice 1 has no picture"),
    "not an image": (volume_pb2.Slice(index=1, dicom_instance=b"%PDF-1.7 surely"), "INSTANCE_UNUSABLE", "slice 1"),
    "empty instance": (volume_pb2.Slice(index=1, dicom_instance=b""), "INSTANCE_UNUSABLE", "slice 1"),
    "no pixel data": (changed(1, data=b""), "WRONG_LENGTH", "0 bytes do not make 48 x 48"),
    "wrong length": (changed(1, data=GOOD.pixels.data[:-1]), "WRONG_LENGTH", "4607 bytes .* 4608 are expected"),
    "wrong type": (
        changed(1, element_type=volume_pb2.ELEMENT_TYPE_FLOAT64),
        "WRONG_LENGTH",
        "of 8 bytes each; 18432 are expected",
    ),
    "no type": (changed(1, element_type=0), "FIELD_INVALID", "ElementType 0"),
    "no rows": (changed(1, rows=0), "FIELD_INVALID", "0 x 48 pixels"),
    "huge": (changed(1, rows=2**31), "FIELD_INVALID", "2147483648 x 48 pixels"),
    "zero slope": (changed(1, rescale_slope=0.0), "FIELD_INVALID", "slope"),
    "infinite intercept": (changed(1, rescale_intercept=float("inf")), "FIELD_INVALID", "intercept"),
    "not finite": (not_finite(), "VALUES_NOT_FINITE", "slice 1 has values that are not finite"),
    "too large to compute with": (
        changed(1, rescale_slope=1e300, rescale_intercept=-1e300),
        "VALUES_NOT_FINITE",
        "slice 1 has values.* too large",
    ),
    "a UID that is none": (named("1" * 65), "FIELD_INVALID", "65 characters"),
    "mixed sizes": (slice_of(1, PICTURES[1][:24]), "MIXED_SIZES", "slice 1 has 24 x 48 .* before it 48 x 48"),
    "twice": (GOOD, "SLICE_REPEATED", "slice 0 came twice"),
    "not planned": (slice_of(3, PICTURES[0]), "SLICE_NOT_PLANNED", "slice 3 is not in the plan"),
}


@pytest.mark.parametrize("kind", ["search", "ingest"])
@pytest.mark.parametrize("name", SLICES)
def test_a_bad_slice_is_refused_by_its_index(peer, name, kind):
    image, reason, sentence = SLICES[name]
    send = getattr(peer, kind)
    error, found, field = refusal(lambda: send(GOOD, image, slice_of(2, PICTURES[2]), volume=header_of("bad", 3)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert found == reason
    assert field.startswith("slice")
    import re

    assert re.search(sentence, error.details())
    names = [volume.volume_id for volume in peer.archive.ListVolumes(archive_pb2.ListVolumesRequest()).volumes]
    assert names == ["there"]


@pytest.mark.parametrize("kind", ["search", "ingest"])
def test_a_missing_slice_is_named(peer, kind):
    send = getattr(peer, kind)
    error, reason, _ = refusal(lambda: send(GOOD, slice_of(2, PICTURES[2]), volume=header_of("bad", 3)))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SLICES_MISSING")
    assert "missing: 1. Send every slice" in error.details()


def with_positions(*positions: float) -> volume_pb2.VolumeHeader:
    return volume_pb2.VolumeHeader(volume_id="q", modality="MR", slice_positions_mm=positions)


def volume_header(**fields: object) -> volume_pb2.VolumeHeader:
    header = header_of("q", 3)
    for name, value in fields.items():
        if isinstance(value, volume_pb2.IntensityRange):
            getattr(header, name).CopyFrom(value)
        else:
            setattr(header, name, value)
    return header


HEADERS = {
    "no volume": ({"top_k": 5}, "slice_positions_mm"),
    "no name": ({"volume": volume_header(volume_id="")}, "volume_id"),
    "odd name": ({"volume": volume_header(volume_id="Jane Doe/ct")}, "volume_id"),
    "no slices": ({"volume": with_positions()}, "slice_positions_mm"),
    "too many slices": ({"volume": with_positions(*map(float, range(20_001)))}, "slice_positions_mm"),
    "descending": ({"volume": with_positions(5, 0)}, "slice_positions_mm"),
    "not finite": ({"volume": with_positions(0, float("nan"))}, "slice_positions_mm"),
    "empty range": (
        {"volume": volume_header(intensity_range=volume_pb2.IntensityRange(low=1, high=1))},
        "intensity_range",
    ),
    "long modality": ({"volume": volume_header(modality="x" * 17)}, "modality"),
    "gap": (
        {
            "volume": header_of("q", 3),
            "sampling": sampling_pb2.Sampling(every_millimetres=sampling_pb2.EveryMillimetres(gap_mm=0)),
        },
        "gap_mm",
    ),
    "step": (
        {"volume": header_of("q", 3), "sampling": sampling_pb2.Sampling(every_nth=sampling_pb2.EveryNthSlice())},
        "step",
    ),
    "top_k": ({"volume": header_of("q", 3), "top_k": 1001}, "top_k"),
    "neighbours": ({"volume": header_of("q", 3), "neighbours": 101}, "neighbours"),
    "sigma": (
        {
            "volume": header_of("q", 3),
            "aggregation": retrieval_pb2.Aggregation(gaussian=retrieval_pb2.GaussianVotes(sigma=-1)),
        },
        "sigma",
    ),
    "slab": ({"volume": header_of("q", 3), "slab": volume_pb2.SliceRange(first=2, last=3)}, "slab"),
    "empty condition": (
        {
            "volume": header_of("q", 3),
            "filter": retrieval_pb2.VolumeFilter(labels=[retrieval_pb2.LabelCondition(key="organ")]),
        },
        "filter.labels",
    ),
    "empty exclusion": (
        {"volume": header_of("q", 3), "filter": retrieval_pb2.VolumeFilter(exclude_patient_keys=[""])},
        "exclude_patient_keys",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_header_is_refused_by_its_field(peer, name):
    header, named = HEADERS[name]
    error, reason, field = refusal(lambda: peer.search(GOOD, **header))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert named in field
    assert "Jane" not in error.details()  # a name that was sent by mistake is not sent back


@pytest.mark.parametrize(
    ("labels", "others"),
    [({"a key": "x"}, {}), ({"k": ""}, {}), ({"k": "x" * 257}, {}), ({}, {"patient_key": "x" * 129})],
)
def test_bad_labels_and_keys_are_refused(peer, labels, others):
    error, reason, _ = refusal(lambda: peer.ingest(GOOD, volume=header_of("q", 1), labels=labels, **others))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def test_a_stream_begins_with_a_header_and_has_one(peer):
    error, reason, _ = refusal(lambda: peer.search(GOOD))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "HEADER_EXPECTED")
    error, reason, _ = refusal(lambda: peer.search())
    assert reason == "HEADER_EXPECTED"
    again = retrieval_pb2.SearchRequest(header=retrieval_pb2.SearchHeader(volume=header_of("q", 3)))
    error, reason, _ = refusal(lambda: peer.search(again, volume=header_of("q", 3)))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SLICE_EXPECTED")


def test_more_hits_than_an_answer_holds_are_refused(peer):
    error, reason, _ = refusal(lambda: peer.search(volume=header_of("q", 3000), neighbours=100))
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_HITS")


def test_silent_streams_give_their_place_up(tmp_path, tiny_backbone):
    listening = ServerSettings(address="127.0.0.1:0", timeouts=StreamTimeouts(header_s=0.2, idle_s=0.2))
    with LocalServer(tmp_path / "d", [tiny_backbone], listening=listening) as server, Peer(server.address) as peer:
        silent = peer.retrieval.Search(iter(threading.Event().wait, True), timeout=120)
        error, reason, _ = refusal(lambda: list(silent))
        assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_IDLE")
        assert "no header has arrived" in error.details()
        paused = peer.ingest_slowly(volume=header_of("v", 2))
        error, reason, _ = refusal(lambda: list(paused.call))
        assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_IDLE")


def test_an_unknown_backbone_is_named_with_the_known_ones(peer):
    error, reason, _ = refusal(lambda: peer.search(GOOD, volume=header_of("q", 1), backbone="vgg"))
    assert (error.code(), reason) == (grpc.StatusCode.NOT_FOUND, "BACKBONE_UNKNOWN")
    assert "it has tiny" in error.details()


def test_too_many_streams_are_turned_away_with_a_time_to_come_back(tmp_path, tiny_backbone):
    listening = ServerSettings(address="127.0.0.1:0", max_streams=2, grace_s=1)
    with LocalServer(tmp_path / "d", [tiny_backbone], listening=listening) as server, Peer(server.address) as peer:
        held = [peer.ingest_slowly(volume=header_of(f"v{number}", 2)) for number in range(2)]
        error, reason, _ = refusal(lambda: peer.ingest(volume=header_of("v3", 2)))
        assert (error.code(), reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        for ingest in held:
            ingest.call.cancel()


def test_ingests_leave_places_to_searches(tmp_path, tiny_backbone):
    listening = ServerSettings(address="127.0.0.1:0", max_streams=4, grace_s=1)
    with LocalServer(tmp_path / "d", [tiny_backbone], listening=listening) as server, Peer(server.address) as peer:
        peer.ingest(GOOD, volume=header_of("there", 1))
        held = [peer.ingest_slowly(volume=header_of(f"v{number}", 2)) for number in range(3)]
        _, reason, _ = refusal(lambda: peer.ingest(volume=header_of("v3", 2)))
        assert reason == "OVERLOADED"
        assert peer.search(GOOD, volume=header_of("q", 1))[-1].ranking.matches
        for ingest in held:
            ingest.call.cancel()


def test_nothing_of_a_patient_is_logged(tmp_path, tiny_backbone):
    with (
        ServerProcess(tmp_path / "data", tiny_backbone, "--log-level", "debug") as server,
        Peer(server.address) as peer,
    ):
        secret = "Doe^Jane"
        peer.ingest(GOOD, volume=header_of("v", 1), labels={"note": secret}, patient_key=secret, source=secret)
        refusal(lambda: peer.ingest(GOOD, volume=header_of("v", 1), labels={secret: "x"}))
        refusal(lambda: peer.ingest(volume_pb2.Slice(dicom_instance=secret.encode()), volume=header_of("v", 1)))
        assert "ingested a volume" in server.log
        assert secret not in server.log


def test_nothing_of_a_patient_is_logged_or_answered_where_the_server_itself_fails(server, monkeypatch, caplog):
    name = "^".join(["Doe", "Jane"])  # so that the trace's own lines do not hold it

    def fail(*_):
        raise RuntimeError(name)

    monkeypatch.setattr(server.engine, "record", fail)
    request = archive_pb2.GetVolumeRequest(volume_id="v")
    with Peer(server.address) as peer:
        error, reason, _ = refusal(lambda: peer.archive.GetVolume(request))
    assert (error.code(), reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "GetVolume failed: RuntimeError" in caplog.text
    assert name not in caplog.text + error.details()


def start(*words: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).parent / "slicevote-server"
    return subprocess.run([str(command), *words], capture_output=True, text=True, timeout=240, check=False)


class TestStarting:
    """A server that cannot start says why, on stderr, in a sentence, with exit code 1."""

    def refused(self, *words: str) -> str:
        result = start("serve", *words)
        assert result.returncode == 1, result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr

    def test_no_file(self, tmp_path):
        said = self.refused("--data", str(tmp_path / "d"), "--backbone", str(tmp_path / "none.onnx"))
        assert "there is no such file" in said
        assert not (tmp_path / "d").exists()
        assert "slicevote-export" in said

    def test_not_onnx(self, tmp_path):
        (tmp_path / "page.onnx").write_text("<html>not found</html>")
        said = self.refused("--data", str(tmp_path / "d"), "--backbone", str(tmp_path / "page.onnx"))
        assert "not an ONNX file" in said

    def test_onnx_of_somebody_else(self, tmp_path, tiny_backbone):
        import onnx

        model = onnx.load(tiny_backbone)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "plain.onnx")
        said = self.refused("--data", str(tmp_path / "d"), "--backbone", str(tmp_path / "plain.onnx"))
        assert "does not say what it is" in said

    def test_wrong_golden_embedding(self, tmp_path):
        golden = np.ones(64, np.float32) / 8
        wrong = write_tiny_backbone(tmp_path / "wrong.onnx", golden=golden)
        assert "golden embedding" in self.refused("--data", str(tmp_path / "d"), "--backbone", str(wrong))

    def test_archive_of_other_weights_or_policy(self, tmp_path, tiny_backbone):
        with LocalServer(tmp_path / "d", [tiny_backbone]):
            pass
        other = write_tiny_backbone(tmp_path / "other.onnx", seed=1)
        data = ("--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0")
        assert "made with something else (weights sha256" in self.refused(*data, "--backbone", str(other))
        said = self.refused(*data, "--backbone", str(tiny_backbone), "--ct-window", "-200", "300")
        assert "intensity policy" in said

    def test_archive_of_another_backbone(self, tmp_path, tiny_backbone):
        with LocalServer(tmp_path / "d", [tiny_backbone]):
            pass
        other = write_tiny_backbone(tmp_path / "other.onnx", name="other")
        said = self.refused("--data", str(tmp_path / "d"), "--backbone", str(other), "--listen", "127.0.0.1:0")
        assert "made with other backbones (tiny)" in said

    def test_port_in_use(self, tmp_path, tiny_backbone):
        with LocalServer(tmp_path / "d", [tiny_backbone]) as server:
            said = self.refused(
                "--data", str(tmp_path / "e"), "--backbone", str(tiny_backbone), "--listen", server.address
            )
        assert f"cannot listen on {server.address}: the port is in use" in said

    def test_port_of_the_metrics_in_use(self, tmp_path, tiny_backbone):
        with LocalServer(tmp_path / "d", [tiny_backbone]) as server:
            data = ("--data", str(tmp_path / "e"), "--backbone", str(tiny_backbone), "--listen", "127.0.0.1:0")
            said = self.refused(*data, "--metrics", server.address)
        assert f"cannot serve metrics on {server.address} (Address already in use)" in said
        assert "--metrics HOST:PORT" in said

    def test_folder_that_is_not_writable(self, tmp_path, tiny_backbone):
        # A file where a folder should be: not even root can write into it.
        (tmp_path / "d").write_text("")
        said = self.refused("--data", str(tmp_path / "d"), "--backbone", str(tiny_backbone))
        assert "cannot be written" in said

    def test_folder_in_use(self, tmp_path, tiny_backbone):
        with LocalServer(tmp_path / "d", [tiny_backbone]):
            said = self.refused(
                "--data", str(tmp_path / "d"), "--backbone", str(tiny_backbone), "--listen", "127.0.0.1:0"
            )
        assert f"is in use by process {os.getpid()}; stop that server" in said

    def test_misuse_is_exit_code_2(self, tmp_path):
        for words in (("serve",), ("serve", "--nonsense"), ("nonsense",)):
            assert start(*words).returncode == 2
        bad = start("serve", "--data", str(tmp_path), "--backbone", "x.onnx", "--listen", "nowhere")
        assert bad.returncode == 2
        assert "HOST:PORT" in bad.stderr
        bad = start("serve", "--data", str(tmp_path), "--backbone", "x.onnx", "--metrics", "9464")
        assert bad.returncode == 2
        assert "--metrics" in bad.stderr
