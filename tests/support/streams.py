"""A scripted peer: streams that say exactly what a test wants, right or wrong."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from slicevote.v1 import archive_pb2, archive_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, volume_pb2

Pixels = Callable[[int], volume_pb2.Slice]


def header_of(volume_id: str, slices: int, *, modality: str = "CT") -> volume_pb2.VolumeHeader:
    """A header of a volume with a slice every 5 mm."""
    return volume_pb2.VolumeHeader(
        volume_id=volume_id, modality=modality, slice_positions_mm=[5.0 * index for index in range(slices)]
    )


def slice_of(index: int, picture: np.ndarray) -> volume_pb2.Slice:
    """A slice of 16-bit values."""
    rows, columns = picture.shape
    pixels = volume_pb2.PixelData(
        rows=rows,
        columns=columns,
        element_type=volume_pb2.ELEMENT_TYPE_INT16,
        data=picture.astype("<i2").tobytes(),
    )
    return volume_pb2.Slice(index=index, pixels=pixels)


class Peer:
    """A connection without any of the client's care."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", 80 << 20)])
        self.retrieval = retrieval_pb2_grpc.RetrievalServiceStub(self.channel)
        self.archive = archive_pb2_grpc.ArchiveServiceStub(self.channel)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def search(self, *messages: Any, **header: Any) -> list[retrieval_pb2.SearchResponse]:
        """Sends a header (of the keywords, if there are any) and these messages, whatever the plan says."""
        first = [retrieval_pb2.SearchRequest(header=retrieval_pb2.SearchHeader(**header))] if header else []
        return list(self.retrieval.Search(iter([*first, *map(_search_message, messages)]), timeout=240))

    def ingest(self, *messages: Any, **header: Any) -> list[archive_pb2.IngestVolumeResponse]:
        """Sends a header (of the keywords, if there are any) and these messages, whatever the plan says."""
        first = [archive_pb2.IngestVolumeRequest(header=archive_pb2.IngestHeader(**header))] if header else []
        return list(self.archive.IngestVolume(iter([*first, *map(_ingest_message, messages)]), timeout=240))

    def ingest_slowly(self, **header: Any) -> SlowStream:
        """Begins an ingest and leaves it to the test when it goes on."""
        first = archive_pb2.IngestVolumeRequest(header=archive_pb2.IngestHeader(**header))
        return SlowStream(self.archive.IngestVolume, first, _ingest_message)

    def search_slowly(self, **header: Any) -> SlowStream:
        """Begins a search and leaves it to the test when it goes on."""
        first = retrieval_pb2.SearchRequest(header=retrieval_pb2.SearchHeader(**header))
        return SlowStream(self.retrieval.Search, first, _search_message)


class SlowStream:
    """A stream that goes on when the test says so."""

    def __init__(self, method: Any, header: Any, wrap: Callable[[Any], Any]) -> None:
        self._wrap = wrap
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._messages.put(header)
        self.call = method(self._requests(), timeout=240)
        self.plan = next(self.call).plan

    def send(self, image: volume_pb2.Slice) -> None:
        """Sends one slice."""
        self._messages.put(self._wrap(image))

    def half_close(self) -> None:
        """Says that nothing more comes."""
        self._messages.put(None)

    def _requests(self) -> Iterator[Any]:
        while (message := self._messages.get()) is not None:
            yield message


def _search_message(message: Any) -> retrieval_pb2.SearchRequest:
    if isinstance(message, volume_pb2.Slice):
        return retrieval_pb2.SearchRequest(slice=message)
    return message


def _ingest_message(message: Any) -> archive_pb2.IngestVolumeRequest:
    if isinstance(message, volume_pb2.Slice):
        return archive_pb2.IngestVolumeRequest(slice=message)
    return message
