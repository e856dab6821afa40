"""What the two streaming calls share: their header, their place in the house, and the way of their slices."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from slicevote.v1.volume_pb2 import Slice as SliceMessage
from slicevote_volumes import Slice

from slicevote_server.errors import InvalidInput, Overloaded
from slicevote_server.service.requests import slice_of
from slicevote_server.service.slice_stream import RequestT, SliceStream

ResultT = TypeVar("ResultT")

_IN_FLIGHT = 2
"""Batches of one stream that are worked on at a time: one is decoded while the one before is embedded."""

_RETRY_AFTER_S = 2.0

HEADER_S = 30.0
"""How long a stream may take to say what it wants."""


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
        """Takes a place for as long as the context lasts.

        Args:
            search: It is a search.

        Raises:
            Overloaded: There is none.
        """
        limit = self._limit if search else self._limit - self._limit // 4
        if self._inside >= limit:
            kept = "" if search else ", not counting places that are kept for searches"
            raise Overloaded(
                f"{self._inside} streams are open, which is all that this server takes{kept}; try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


async def first_message(requests: AsyncIterator[RequestT], kind: str) -> RequestT:
    """Gives the first message of a stream, which must be a header.

    Raises:
        InvalidInput: It is not, or the stream is empty, or nothing has come for too long.
    """
    try:
        message = await asyncio.wait_for(anext(requests, None), HEADER_S)
    except TimeoutError:
        raise InvalidInput(
            f"no header has come for {HEADER_S:.0f} s; begin the stream again", reason="STREAM_IDLE", field="header"
        ) from None
    if message is None or message.WhichOneof("message") != "header":  # type: ignore[attr-defined]
        raise InvalidInput(f"{kind} begins with a header", reason="HEADER_EXPECTED", field="header")
    return message


async def pump(
    feed: SliceStream[RequestT],
    take: Callable[[Iterator[Slice]], ResultT],
    *,
    batch_size: int,
    executor: ThreadPoolExecutor,
) -> AsyncGenerator[ResultT]:
    """Hands the slices of a stream to `take`, in batches and on threads, and gives what it returns, in order.

    Args:
        feed: The slices.
        take: Decodes, embeds and more; never runs on the event loop.
        batch_size: Most slices a batch.
        executor: The threads.
    """
    loop = asyncio.get_running_loop()

    def work(messages: Sequence[SliceMessage]) -> ResultT:
        # Translated one by one while they are taken, so that decoding DICOM is on this thread and timed as decoding.
        return take(slice_of(message) for message in messages)

    running: deque[asyncio.Future[ResultT]] = deque()
    upcoming: asyncio.Task[list[SliceMessage]] | None = None
    ended = False
    try:
        while running or not ended:
            # A batch is taken only when there is room for it: until then more slices gather for it.
            if upcoming is None and not ended and len(running) < _IN_FLIGHT:
                upcoming = asyncio.create_task(feed.batch(batch_size))
            # Whichever comes first, so that a result is never held back by a client that pauses.
            waiting: list[asyncio.Future[Any]] = [*([upcoming] if upcoming else []), *list(running)[:1]]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if running and running[0].done():
                yield running.popleft().result()
            elif upcoming is not None and upcoming.done():
                messages, upcoming = upcoming.result(), None
                ended = not messages
                if messages:
                    running.append(loop.run_in_executor(executor, work, messages))
    finally:
        unfinished: list[asyncio.Future[Any]] = [*running, *([upcoming] if upcoming else [])]
        for future in unfinished:
            future.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
