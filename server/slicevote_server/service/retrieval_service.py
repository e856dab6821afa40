"""slicevote.v1.RetrievalService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from slicevote.v1 import retrieval_pb2, retrieval_pb2_grpc, sampling_pb2
from slicevote.v1.volume_pb2 import Slice

from slicevote_server.engine import Engine
from slicevote_server.service import requests, responses
from slicevote_server.service.errors import attempt
from slicevote_server.service.metrics import Metrics
from slicevote_server.service.slice_stream import SliceStream
from slicevote_server.service.streaming import Gate, first_message, pump


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Searches of an engine.

    Args:
        engine: The engine.
        executor: Threads for everything that is not the event loop's.
        gate: Shared with the other service.
        metrics: Where calls are counted.
    """

    def __init__(self, engine: Engine, executor: ThreadPoolExecutor, gate: Gate, metrics: Metrics) -> None:
        self._engine = engine
        self._executor = executor
        self._gate = gate
        self._metrics = metrics

    async def Search(  # noqa: N802  the contract's name
        self,
        request_iterator: AsyncIterator[retrieval_pb2.SearchRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[retrieval_pb2.SearchResponse]:
        """Carries on the conversation of one search."""
        async with attempt(context, "Search", self._metrics) as outcome:
            with self._gate.enter(search=True):
                async for response in self._converse(aiter(request_iterator)):
                    outcome.answered = response.WhichOneof("message") == "ranking"
                    yield response

    async def _converse(
        self, stream: AsyncIterator[retrieval_pb2.SearchRequest]
    ) -> AsyncIterator[retrieval_pb2.SearchResponse]:
        loop = asyncio.get_running_loop()
        header = (await first_message(stream, "a search")).header
        request = requests.search_request(header)
        search = await loop.run_in_executor(self._executor, self._engine.search, request, header.backbone)
        yield retrieval_pb2.SearchResponse(plan=sampling_pb2.SlicePlan(slice_indices=search.plan))
        early, shown = False, 0
        try:
            async with SliceStream(stream, _slice, len(search.plan)) as feed:
                batch_size = self._engine.settings.batch_size
                tallies = pump(feed, search.add, batch_size=batch_size, executor=self._executor)
                async with contextlib.aclosing(tallies):
                    async for tally in tallies:
                        # Batches overlap: the tally of one that was quicker may be older than what is shown already.
                        if tally.number < shown:
                            continue
                        shown = tally.number
                        yield retrieval_pb2.SearchResponse(tally=responses.tally_message(tally))
                        if tally.decided and request.stop_when_decided and tally.received_count < len(search.plan):
                            early = True
                            break
                search.intake.waited(feed.waited_s)
        finally:
            search.cancel()
        name = self._engine.backbone(header.backbone).backbone.name

        def conclude() -> retrieval_pb2.SearchResponse:
            ranking = search.finish(early=early)
            tally = ranking.tally
            self._metrics.worked("Search", used=tally.voting_count, blank=tally.blank_count, times=ranking.times)
            if early:
                self._metrics.decided_early()
            message = responses.ranking_message(ranking, backbone=name, index=request.index)
            return retrieval_pb2.SearchResponse(ranking=message)

        yield await loop.run_in_executor(self._executor, conclude)


def _slice(request: retrieval_pb2.SearchRequest) -> Slice | None:
    return request.slice if request.WhichOneof("message") == "slice" else None
