"""The service slicevote.v1.RetrievalService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from slicevote.v1 import retrieval_pb2, retrieval_pb2_grpc, sampling_pb2
from slicevote_volumes import Slice

from slicevote_server.engine import Engine
from slicevote_server.search import Search, SearchRequest, Tally
from slicevote_server.service import requests, responses
from slicevote_server.service.conversation import Conversation, Gate, converse
from slicevote_server.service.metrics import Metrics
from slicevote_server.service.slice_stream import StreamTimeouts
from slicevote_server.session import Session


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Searches of an engine.

    Args:
        engine: The engine.
        executor: Threads for everything that is not the event loop's.
        gate: Shared with the other service.
        metrics: Where slices and times are counted.
        timeouts: How long a stream may be silent.
    """

    def __init__(
        self, engine: Engine, executor: ThreadPoolExecutor, gate: Gate, metrics: Metrics, timeouts: StreamTimeouts
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._gate = gate
        self._metrics = metrics
        self._timeouts = timeouts

    async def Search(  # noqa: N802  the contract's name
        self,
        request_iterator: AsyncIterator[retrieval_pb2.SearchRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[retrieval_pb2.SearchResponse]:
        """Carry on the conversation of one search."""
        conversation = _SearchConversation(self._engine, self._metrics)
        with self._gate.enter(search=True):
            batch_size = self._engine.settings.batch_size
            async for response in converse(
                conversation,
                aiter(request_iterator),
                batch_size=batch_size,
                executor=self._executor,
                timeouts=self._timeouts,
            ):
                yield response


class _SearchConversation(Conversation[retrieval_pb2.SearchRequest, retrieval_pb2.SearchResponse, Tally]):
    kind = "a search"
    _request: SearchRequest
    _search: Search

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._shown = 0

    def start(self, header: retrieval_pb2.SearchRequest) -> Session:
        self._request = requests.search_request(header.header)
        self._search = self._engine.search(self._request, header.header.backbone)
        return self._search.session

    def plan(self, indices: Sequence[int]) -> retrieval_pb2.SearchResponse:
        return retrieval_pb2.SearchResponse(plan=sampling_pb2.SlicePlan(slice_indices=indices))

    def take(self, slices: Iterator[Slice]) -> Tally:
        return self._search.add(slices)

    def progress(self, step: Tally) -> retrieval_pb2.SearchResponse | None:
        # Batches overlap: the tally of one that was quicker may be older than what is shown already.
        if step.number < self._shown:
            return None
        self._shown = step.number
        return retrieval_pb2.SearchResponse(tally=responses.tally_message(step))

    def is_decided(self, step: Tally) -> bool:
        newest = step.number == self._shown
        return newest and step.decided and self._request.stop_when_decided and step.received_count < step.planned_count

    def conclude(self, *, early: bool) -> retrieval_pb2.SearchResponse:
        ranking = self._search.finish(early=early)
        tally = ranking.tally
        self._metrics.count_finished("Search", used=tally.voting_count, blank=tally.blank_count, times=ranking.times)
        if early:
            self._metrics.decided_early()
        message = responses.ranking_message(ranking, backbone=self._search.backbone, index=self._request.index)
        return retrieval_pb2.SearchResponse(ranking=message)
