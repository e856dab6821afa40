"""The slices of a stream, read ahead of their use with a bound on how many may wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from slicevote.v1.volume_pb2 import Slice

from slicevote_server.errors import InvalidInput
from slicevote_server.stage_clock import Stage, StageClock

RequestT = TypeVar("RequestT")

_WAITING_SLICES = 16
_WAITING_BYTES = 32 << 20
"""Of one stream, what may wait and what a batch may hold, beyond one slice."""

_END = None


@dataclass(frozen=True)
class StreamTimeouts:
    """How long a stream may be silent before it is ended, so that its place becomes free.

    Attributes:
        header_s: Time until the header, in seconds.
        idle_s: Time between slices, in seconds.
    """

    header_s: float = 30.0
    idle_s: float = 120.0


class SliceStream(Generic[RequestT]):
    """Reads slices ahead of their use.

    Reading stops while enough slices, or large ones, wait, so that a fast client is held back by the transport.

    Args:
        requests: The stream, its header already taken.
        slice_of: Returns the slice of a message, or None where it holds something else.
        planned: How many slices are planned; nothing is read beyond.
        clock: Counts the time spent waiting for the client.
        idle_s: How long the client may pause, in seconds.
    """

    def __init__(
        self,
        requests: AsyncIterator[RequestT],
        slice_of: Callable[[RequestT], Slice | None],
        planned: int,
        clock: StageClock,
        *,
        idle_s: float,
    ) -> None:
        self._requests = requests
        self._slice_of = slice_of
        self._planned = planned
        self._clock = clock
        self._idle_s = idle_s
        self._queue: asyncio.Queue[Slice | BaseException | None] = asyncio.Queue(_WAITING_SLICES)
        self._ended = False
        self._waiting_bytes = 0
        self._taken = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def batch(self, limit: int) -> list[Slice]:
        """Wait for a slice, and return it with those that wait behind it; nothing at the end of the stream.

        Raises:
            InvalidInput: The stream holds something else, or nothing has arrived for too long.
        """
        slices: list[Slice] = []
        size = 0
        while not self._ended and len(slices) < limit and size < _WAITING_BYTES:
            if self._queue.empty():
                if slices:
                    break
                try:
                    with self._clock.running(Stage.WAITING):
                        entry = await asyncio.wait_for(self._queue.get(), self._idle_s)
                except TimeoutError:
                    raise InvalidInput(
                        f"no slice has arrived for {self._idle_s:g} s; start the stream again",
                        reason="STREAM_IDLE",
                        field="message",
                    ) from None
            else:
                entry = self._queue.get_nowait()
            if entry is _END:
                self._ended = True
            elif isinstance(entry, BaseException):
                raise entry
            else:
                slices.append(entry)
                size += entry.ByteSize()
        self._waiting_bytes -= size
        self._taken.set()
        return slices

    async def _read(self) -> None:
        try:
            for _ in range(self._planned):
                request = await anext(self._requests, None)
                if request is None:
                    break
                image = self._slice_of(request)
                if image is None:
                    raise InvalidInput(
                        "after the header a stream holds slices only", reason="SLICE_EXPECTED", field="message"
                    )
                await self._make_room(image.ByteSize())
                await self._queue.put(image)
            await self._queue.put(_END)
        except Exception as error:  # noqa: BLE001  handed to whoever waits for slices
            await self._queue.put(error)

    async def _make_room(self, size: int) -> None:
        """Wait until a slice fits among those that wait; one alone always does."""
        while self._waiting_bytes and self._waiting_bytes + size > _WAITING_BYTES:
            self._taken.clear()
            await self._taken.wait()
        self._waiting_bytes += size
