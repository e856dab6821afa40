"""The conversation of both streaming calls: header, plan, slices, result."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from slicevote.v1.volume_pb2 import Slice as SliceMessage
from slicevote_volumes import Slice

from slicevote_server.errors import InvalidInput, Overloaded
from slicevote_server.service.call import current_call, on_thread
from slicevote_server.service.requests import slice_of
from slicevote_server.service.slice_stream import SliceStream, StreamTimeouts
from slicevote_server.session import Session

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
StepT = TypeVar("StepT")

_IN_FLIGHT = 2
"""Batches of one stream that are worked on at a time: one is decoded while the one before is embedded."""

_RETRY_AFTER_S = 2.0


class Gate:
    """Lets in so many streams at a time and turns the others away, with a time to come back.

    Args:
        limit: How many. From 4 on a quarter of the places is for searches only: somebody waits for them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0

    @contextlib.contextmanager
    def enter(self, *, search: bool) -> Iterator[None]:
        """Take a place for as long as the context lasts.

        Args:
            search: It is a search.

        Raises:
            Overloaded: No place is free.
        """
        limit = self._limit if search else self._limit - self._limit // 4
        if self._inside >= limit:
            kept = "" if search else ", not counting places reserved for searches"
            raise Overloaded(
                f"{self._inside} streams are open, which is this server's limit{kept}; try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Conversation(abc.ABC, Generic[RequestT, ResponseT, StepT]):
    """One search or ingest, as messages. `converse` calls the methods in the order in which they stand here."""

    kind: str
    """What it is, for errors: "a search"."""

    @abc.abstractmethod
    def start(self, header: RequestT) -> Session:
        """Start on a thread with the first message, which holds a header; return the session that takes the slices."""

    @abc.abstractmethod
    def plan(self, indices: Sequence[int]) -> ResponseT:
        """Return the message that asks for slices."""

    @abc.abstractmethod
    def take(self, slices: Iterator[Slice]) -> StepT:
        """Take a batch of slices, on a thread; several batches may be under way."""

    @abc.abstractmethod
    def progress(self, step: StepT) -> ResponseT | None:
        """Return the message that tells how far it is, or None where there is nothing new to tell."""

    def is_decided(self, step: StepT) -> bool:
        """Return whether the slices that are still missing do not matter any more."""
        return False

    @abc.abstractmethod
    def conclude(self, *, early: bool) -> ResponseT:
        """Return the last message, on a thread; `early` where it was decided before all slices had arrived."""


async def converse(
    conversation: Conversation[RequestT, ResponseT, StepT],
    requests: AsyncIterator[RequestT],
    *,
    batch_size: int,
    executor: ThreadPoolExecutor,
    timeouts: StreamTimeouts,
) -> AsyncIterator[ResponseT]:
    """Carry on the conversation of one stream.

    Args:
        conversation: What is talked about.
        requests: The client's messages.
        batch_size: Most slices a batch.
        executor: Threads for everything that is not the event loop's.
        timeouts: How long the client may be silent.

    Yields:
        The server's messages.
    """
    header = await _first_message(requests, conversation.kind, timeouts.header_s)
    session = await on_thread(executor, lambda: conversation.start(header))
    yield conversation.plan(session.plan)
    early = False
    try:
        async with SliceStream(
            requests, _slice_message, len(session.plan), session.clock, idle_s=timeouts.idle_s
        ) as stream:
            steps = pump(stream, conversation.take, batch_size=batch_size, executor=executor)
            async with contextlib.aclosing(steps):
                async for step in steps:
                    message = conversation.progress(step)
                    if message is not None:
                        yield message
                    if conversation.is_decided(step):
                        early = True
                        break
    finally:
        session.cancel()
    result = await on_thread(executor, lambda: conversation.conclude(early=early))
    current_call().answered = True
    yield result


async def pump(
    stream: SliceStream[RequestT],
    take: Callable[[Iterator[Slice]], StepT],
    *,
    batch_size: int,
    executor: ThreadPoolExecutor,
) -> AsyncGenerator[StepT]:
    """Hand the slices of a stream to `take`, in batches and on threads, and yield what it returns, in order.

    Args:
        stream: The slices.
        take: Decodes, embeds and more; never runs on the event loop.
        batch_size: Most slices a batch.
        executor: The threads.
    """
    loop = asyncio.get_running_loop()

    def work(messages: Sequence[SliceMessage]) -> StepT:
        # Translated one by one while they are taken, so that DICOM is decoded on this thread and timed as decoding.
        return take(slice_of(message) for message in messages)

    running: deque[asyncio.Future[StepT]] = deque()
    upcoming: asyncio.Task[list[SliceMessage]] | None = None
    ended = False
    try:
        while running or not ended:
            # A batch is taken only when there is room for it: until then more slices gather for it.
            if upcoming is None and not ended and len(running) < _IN_FLIGHT:
                upcoming = asyncio.create_task(stream.batch(batch_size))
            # Whichever comes first, so that a result is never held back by a client that pauses.
            waiting: list[asyncio.Future[Any]] = [*([upcoming] if upcoming else []), *list(running)[:1]]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if running and running[0].done():
                yield running.popleft().result()
            elif upcoming is not None and upcoming.done():
                messages, upcoming = upcoming.result(), None
                ended = not messages
                if messages:
                    context = contextvars.copy_context()
                    running.append(loop.run_in_executor(executor, context.run, work, messages))
    finally:
        unfinished: list[asyncio.Future[Any]] = [*running, *([upcoming] if upcoming else [])]
        for future in unfinished:
            future.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def _first_message(requests: AsyncIterator[RequestT], kind: str, timeout_s: float) -> RequestT:
    """Return the first message of a stream, which must be a header.

    Raises:
        InvalidInput: It is not, or the stream is empty, or nothing has arrived for too long.
    """
    try:
        message = await asyncio.wait_for(anext(requests, None), timeout_s)
    except TimeoutError:
        raise InvalidInput(
            f"no header has arrived for {timeout_s:g} s; start the stream again", reason="STREAM_IDLE", field="header"
        ) from None
    if message is None or message.WhichOneof("message") != "header":  # type: ignore[attr-defined]
        raise InvalidInput(f"{kind} begins with a header", reason="HEADER_EXPECTED", field="header")
    return message


def _slice_message(request: Any) -> SliceMessage | None:
    return request.slice if request.WhichOneof("message") == "slice" else None
