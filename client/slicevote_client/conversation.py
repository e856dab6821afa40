"""The client's side of a stream: the header, then the slices that the server plans."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
from slicevote.contract import ELEMENT_TYPES
from slicevote.v1 import sampling_pb2, volume_pb2
from slicevote_volumes import Slice, Volume

RequestT = TypeVar("RequestT")


class Conversation(Generic[RequestT]):
    """The messages of one stream, in order: the header, then the slices of the plan once it is known.

    Args:
        volume: The volume whose slices are sent; a slice is decoded when there is room for it on the connection.
        header: The first message.
        wrap: Makes a message of a slice.
    """

    def __init__(self, volume: Volume, header: RequestT, wrap: Callable[[volume_pb2.Slice], RequestT]) -> None:
        self._volume = volume
        self._header = header
        self._wrap = wrap
        self._plan: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self.failure: Exception | None = None
        self.on_failure: Callable[[], object] = lambda: None

    def requests(self) -> Iterator[RequestT]:
        """Yield the messages; gRPC takes them on a thread of its own."""
        yield self._header
        for index in self._plan.get():
            if self._ended.is_set():
                return
            try:
                message = slice_message(self._volume.slice(index))
            except Exception as error:  # noqa: BLE001  raised again on the caller's thread
                self.failure = error
                self.on_failure()
                return
            yield self._wrap(message)

    def follow(self, plan: sampling_pb2.SlicePlan) -> None:
        """Send the slices of the plan."""
        self._plan.put(tuple(plan.slice_indices))

    def end(self) -> None:
        """Send no further slice."""
        self._ended.set()
        self._plan.put(())


def volume_header(volume: Volume) -> volume_pb2.VolumeHeader:
    """Return the message that announces a volume."""
    intensities = volume.intensity_range()
    spacing = volume.pixel_spacing_mm
    return volume_pb2.VolumeHeader(
        volume_id=volume.id,
        modality=volume.modality,
        slice_positions_mm=volume.positions_mm,
        intensity_range=(
            None if intensities is None else volume_pb2.IntensityRange(low=intensities.low, high=intensities.high)
        ),
        pixel_spacing=None if spacing is None else volume_pb2.PixelSpacing(row_mm=spacing[0], column_mm=spacing[1]),
    )


def slice_message(image: Slice) -> volume_pb2.Slice:
    """Return the message that carries a slice's stored values, little-endian."""
    little_endian: np.ndarray[Any, Any] = np.ascontiguousarray(image.pixels, dtype=image.pixels.dtype.newbyteorder("<"))
    return volume_pb2.Slice(
        index=image.index,
        pixels=volume_pb2.PixelData(
            rows=image.pixels.shape[0],
            columns=image.pixels.shape[1],
            element_type=ELEMENT_TYPES[little_endian.dtype],
            data=little_endian.tobytes(),
            rescale_slope=image.rescale_slope,
            rescale_intercept=image.rescale_intercept,
        ),
        sop_instance_uid=image.sop_instance_uid,
    )
