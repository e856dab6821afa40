"""The service slicevote.v1.ArchiveService."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from slicevote.contract import MAX_PAGE_SIZE, MAX_THUMBNAILS
from slicevote.v1 import archive_pb2, archive_pb2_grpc, sampling_pb2
from slicevote_volumes import Slice

from slicevote_server import __version__
from slicevote_server.engine import Engine
from slicevote_server.errors import InvalidInput
from slicevote_server.ingest import Ingest
from slicevote_server.service import requests, responses
from slicevote_server.service.call import on_thread
from slicevote_server.service.conversation import Conversation, Gate, converse
from slicevote_server.service.metrics import Metrics
from slicevote_server.service.slice_stream import StreamTimeouts
from slicevote_server.session import Session

logger = logging.getLogger(__name__)

_DEFAULT_PAGE = 100


class ArchiveService(archive_pb2_grpc.ArchiveServiceServicer):
    """The archives of an engine.

    Args:
        engine: The engine.
        executor: Threads for everything that is not the event loop's.
        gate: Shared with the other service.
        metrics: Where slices and times are counted.
        timeouts: How long a stream may be silent.
        listening_on: Where the server listens, for the status.
    """

    def __init__(
        self,
        engine: Engine,
        executor: ThreadPoolExecutor,
        gate: Gate,
        metrics: Metrics,
        timeouts: StreamTimeouts,
        listening_on: str,
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._gate = gate
        self._metrics = metrics
        self._timeouts = timeouts
        self._listening_on = listening_on
        self._started = time.monotonic()

    async def IngestVolume(  # noqa: N802  the contract's name
        self,
        request_iterator: AsyncIterator[archive_pb2.IngestVolumeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[archive_pb2.IngestVolumeResponse]:
        """Carry on the conversation of one ingest."""
        conversation = _IngestConversation(self._engine, self._metrics)
        with self._gate.enter(search=False):
            batch_size = self._engine.settings.batch_size
            async for response in converse(
                conversation,
                aiter(request_iterator),
                batch_size=batch_size,
                executor=self._executor,
                timeouts=self._timeouts,
            ):
                yield response

    async def GetVolume(  # noqa: N802
        self, request: archive_pb2.GetVolumeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> archive_pb2.GetVolumeResponse:
        """Return one volume."""
        return await on_thread(self._executor, lambda: self._get(request))

    async def ListVolumes(  # noqa: N802
        self, request: archive_pb2.ListVolumesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> archive_pb2.ListVolumesResponse:
        """Return a page of volumes."""
        return await on_thread(self._executor, lambda: self._list(request))

    async def ListLabels(  # noqa: N802
        self, request: archive_pb2.ListLabelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> archive_pb2.ListLabelsResponse:
        """Return the labels of an archive with their values."""
        archive = self._engine.backbone(request.backbone).archive
        return responses.labels_message(await on_thread(self._executor, archive.label_counts))

    async def DeleteVolume(  # noqa: N802
        self, request: archive_pb2.DeleteVolumeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> archive_pb2.DeleteVolumeResponse:
        """Delete a volume."""
        volume_id = requests.volume_id(request.volume_id)
        record = await on_thread(self._executor, lambda: self._engine.delete(volume_id))
        logger.info("deleted a volume of %d slices", record.slice_count)
        return archive_pb2.DeleteVolumeResponse(volume=responses.record_message(record))

    async def GetArchive(  # noqa: N802
        self, request: archive_pb2.GetArchiveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> archive_pb2.GetArchiveResponse:
        """Return what the server holds and how it runs."""
        return await on_thread(self._executor, self._status)

    def _get(self, request: archive_pb2.GetVolumeRequest) -> archive_pb2.GetVolumeResponse:
        if len(request.thumbnail_slices) > MAX_THUMBNAILS:
            raise InvalidInput(
                f"{len(request.thumbnail_slices)} thumbnails are too many for one call; at most {MAX_THUMBNAILS}",
                reason="FIELD_INVALID",
                field="thumbnail_slices",
            )
        record = self._engine.record(requests.volume_id(request.volume_id), request.backbone)
        archive = self._engine.backbone(request.backbone).archive
        wanted = set(record.indexed_slices).intersection(request.thumbnail_slices)
        pictures = archive.thumbnails(record, wanted) if wanted else {}
        listed = record.indexed_slices if request.include_slices else sorted(wanted)
        return archive_pb2.GetVolumeResponse(
            volume=responses.record_message(record),
            slices=[
                archive_pb2.IndexedSlice(
                    index=index,
                    position_mm=record.positions_mm[index],
                    sop_instance_uid=record.sop_instance_uid(index),
                    thumbnail_webp=pictures.get(index, b""),
                )
                for index in listed
            ],
        )

    def _list(self, request: archive_pb2.ListVolumesRequest) -> archive_pb2.ListVolumesResponse:
        size = request.page_size or _DEFAULT_PAGE
        if size > MAX_PAGE_SIZE:
            raise InvalidInput(
                f"a page of {size} volumes is too large; at most {MAX_PAGE_SIZE}",
                reason="FIELD_INVALID",
                field="page_size",
            )
        archive = self._engine.backbone(request.backbone).archive
        # The token is the last id of the page before: volumes that come or go in between move no page.
        page = archive.list_ids(
            requests.label_conditions(request.labels, "labels"),
            prefix=request.volume_id_prefix and requests.volume_id(request.volume_id_prefix, "volume_id_prefix"),
            after=request.page_token and requests.volume_id(request.page_token, "page_token"),
            limit=size,
        )
        records = archive.records(page.volume_ids)
        return archive_pb2.ListVolumesResponse(
            # A volume that was deleted meanwhile is left out.
            volumes=[
                responses.record_message(records[name], positions=False) for name in page.volume_ids if name in records
            ],
            next_page_token=page.volume_ids[-1] if page.has_more else "",
            total_count=page.total_count,
        )

    def _status(self) -> archive_pb2.GetArchiveResponse:
        return archive_pb2.GetArchiveResponse(
            archives=[
                responses.archive_message(served, self._engine.settings.policy) for served in self._engine.backbones
            ],
            server_version=__version__,
            uptime=responses.duration(time.monotonic() - self._started),
            listening_on=self._listening_on,
        )


class _IngestConversation(Conversation[archive_pb2.IngestVolumeRequest, archive_pb2.IngestVolumeResponse, None]):
    kind = "an ingest"
    _ingest: Ingest

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def start(self, header: archive_pb2.IngestVolumeRequest) -> Session:
        self._ingest = self._engine.ingest(requests.ingest_request(header.header))
        return self._ingest.session

    def plan(self, indices: Sequence[int]) -> archive_pb2.IngestVolumeResponse:
        return archive_pb2.IngestVolumeResponse(plan=sampling_pb2.SlicePlan(slice_indices=indices))

    def take(self, slices: Iterator[Slice]) -> None:
        self._ingest.add(slices)

    def progress(self, step: None) -> archive_pb2.IngestVolumeResponse:
        progress = archive_pb2.IngestProgress(
            planned_slice_count=len(self._ingest.session.plan), embedded_slice_count=self._ingest.embedded_count
        )
        return archive_pb2.IngestVolumeResponse(progress=progress)

    def conclude(self, *, early: bool) -> archive_pb2.IngestVolumeResponse:
        result = self._ingest.commit()
        record = result.record
        self._metrics.count_finished(
            "IngestVolume", used=len(record.indexed_slices), blank=record.blank_slice_count, times=result.times
        )
        logger.info(
            "ingested a volume of %d slices (%d blank) in %.2f s",
            record.slice_count,
            record.blank_slice_count,
            result.times.total_s,
        )
        return archive_pb2.IngestVolumeResponse(
            result=archive_pb2.IngestResult(
                volume=responses.record_message(record),
                replaced=result.replaced,
                times=responses.times_message(result.times),
            )
        )
