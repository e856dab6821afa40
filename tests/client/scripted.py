"""A server that answers what a test says, for answers that a real one gives only in trouble."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from slicevote.contract import ERROR_DOMAIN
from slicevote.v1 import archive_pb2, archive_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, sampling_pb2


class ScriptedServer(archive_pb2_grpc.ArchiveServiceServicer, retrieval_pb2_grpc.RetrievalServiceServicer):
    """Plans the first slice of every volume, then answers with `ranking`, or refuses with `refusal`.

    Attributes:
        ranking: What a search answers.
        refusal: Code, reason and message of the answer to every ingest; None: every volume is taken.
        labels: The labels of the archive.
        headers: The headers that came in.
    """

    def __init__(self) -> None:
        self.ranking = retrieval_pb2.Ranking(index=retrieval_pb2.VECTOR_INDEX_HNSW)
        self.refusal: tuple[int, str, str] | None = None
        self.labels: dict[str, dict[str, int]] = {}
        self.headers: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        archive_pb2_grpc.add_ArchiveServiceServicer_to_server(self, self._server)
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> ScriptedServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(1).wait()

    def Search(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[retrieval_pb2.SearchResponse]:
        self.headers.append(next(requests).header)
        yield retrieval_pb2.SearchResponse(plan=sampling_pb2.SlicePlan(slice_indices=[0]))
        next(requests)
        yield retrieval_pb2.SearchResponse(ranking=self.ranking)

    def IngestVolume(
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[archive_pb2.IngestVolumeResponse]:
        header = next(requests).header
        self.headers.append(header)
        if self.refusal is not None:
            context.abort_with_status(refused(*self.refusal))
        yield archive_pb2.IngestVolumeResponse(plan=sampling_pb2.SlicePlan(slice_indices=[0]))
        next(requests)
        result = archive_pb2.IngestResult()
        result.volume.volume_id = header.volume.volume_id
        yield archive_pb2.IngestVolumeResponse(result=result)

    def ListLabels(self, request: Any, context: grpc.ServicerContext) -> archive_pb2.ListLabelsResponse:
        response = archive_pb2.ListLabelsResponse()
        for key, values in self.labels.items():
            entry = response.labels.add(key=key)
            for value, count in values.items():
                entry.values.add(value=value, volume_count=count)
        return response

    def GetArchive(self, request: Any, context: grpc.ServicerContext) -> archive_pb2.GetArchiveResponse:
        return archive_pb2.GetArchiveResponse()


def refused(code: int, reason: str, message: str) -> Any:
    """The status of a refused call, with its reason among the details."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[detail]))


FAILED_PRECONDITION = code_pb2.FAILED_PRECONDITION
RESOURCE_EXHAUSTED = code_pb2.RESOURCE_EXHAUSTED
