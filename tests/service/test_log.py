"""The log of a server process."""

from __future__ import annotations

import grpc
import pytest
from slicevote.v1 import archive_pb2, archive_pb2_grpc

from tests.support.servers import ServerProcess


def test_the_lines_of_a_call_carry_its_request_id(tmp_path, tiny_backbone):
    with ServerProcess(tmp_path / "data", tiny_backbone) as server:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            archive_pb2_grpc.ArchiveServiceStub(channel).GetVolume(
                archive_pb2.GetVolumeRequest(volume_id="v"), metadata=(("x-request-id", "my-call-1"),)
            )
        lines = server.log.splitlines()
    assert [line for line in lines if "VOLUME_UNKNOWN" in line and " my-call-1 " in line]
    assert [line for line in lines if "listening on" in line and " - " in line]
