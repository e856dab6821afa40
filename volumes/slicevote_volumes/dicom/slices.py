"""The slices of a DICOM volume: decoded from one instance after another, or cut from all of them reformatted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.dicom.header import is_deflated, read_frames
from slicevote_volumes.dicom.image import Frame
from slicevote_volumes.dicom.instance_sources import Instance
from slicevote_volumes.dicom.pixels import read_stored
from slicevote_volumes.errors import DamagedError, NotAScan, VolumeError, os_reason
from slicevote_volumes.geometry import (
    DEFAULT_ORIENTATION,
    Transversal,
    dicom_affine,
    plane_normal,
    transversal,
)
from slicevote_volumes.shared_pixels import SharedPixels
from slicevote_volumes.volume import Slice


class StackSource:
    """Frames that are transversal already: each is decoded on demand, and turned within its plane."""

    def __init__(self, frames: tuple[Frame, ...], geometry: Transversal) -> None:
        """Take the frames in the order of the slices."""
        self._frames = frames
        self._geometry = geometry

    def read(self, index: int) -> Slice:
        """Decode a slice."""
        frame = self._frames[index]
        stored, slope, intercept = _read(frame, f"slice {index}")
        pixels = np.ascontiguousarray(self._geometry.plane(stored))
        return Slice(index, pixels, slope, intercept, frame.image.sop_instance_uid)

    def release(self) -> None:
        """Do nothing: no pixels are kept."""


class ReformattedSource:
    """Frames that are sagittal or coronal: all are decoded at once, and transversal slices cut from the block."""

    def __init__(self, frames: tuple[Frame, ...], geometry: Transversal) -> None:
        """Take the frames in the order of the geometry's first axis."""
        self._frames = frames
        self._geometry = geometry
        self._block = SharedPixels(self._read_block)

    def read(self, index: int) -> Slice:
        """Cut a slice."""
        block, slope, intercept = self._block.get()
        return Slice(index, np.ascontiguousarray(block[index]), slope, intercept)

    def release(self) -> None:
        """Drop the block."""
        self._block.release()

    def _read_block(self) -> tuple[NDArray[Any], float, float]:
        planes = [_read(frame, f"slice {index}") for index, frame in enumerate(self._frames)]
        rescales = {(slope, intercept) for _, slope, intercept in planes}
        if len(rescales) == 1:
            slope, intercept = rescales.pop()
            block = np.stack([stored for stored, _, _ in planes])
        else:  # a slice cuts through frames of different scale
            slope, intercept = 1.0, 0.0
            block = np.stack([Slice(0, *plane).values() for plane in planes])
        return self._geometry.slices(block), slope, intercept


def _read(frame: Frame, what: str) -> tuple[NDArray[Any], float, float]:
    instance = frame.image.instance
    try:
        with instance.open() as stream:
            return read_stored(frame, stream)
    except OSError as error:
        raise instance.error(f"{what} {os_reason(error)}") from error
    except DamagedError as error:
        raise instance.error(f"{what}: {error}") from None


def decode_instance(data: bytes, index: int) -> Slice:
    """Decode a DICOM Part-10 file in memory that holds one transversal slice.

    Args:
        data: The file.
        index: Which slice of its volume it is, from 0.

    Returns:
        The slice, oriented within its plane.

    Raises:
        VolumeError: The file is not a single-frame, transversal image; says what to do instead.
    """
    instance = Instance.from_bytes(data)
    with instance.open() as stream:
        if is_deflated(stream):  # a few kilobytes could inflate to gigabytes
            raise VolumeError(None, "is a deflated data set; send it uncompressed, or decoded pixels")
    try:
        frames = read_frames(instance)
    except NotAScan as error:
        raise VolumeError(None, f"no DICOM image: {error}; send a Part-10 file, or decoded pixels") from None
    frame = frames[0]
    if len(frames) > 1:
        raise VolumeError(None, f"has {len(frames)} frames; send each as decoded pixels")
    orientation = frame.orientation or DEFAULT_ORIENTATION
    layout = frame.image.layout
    try:
        affine = dicom_affine(orientation, (1.0, 1.0), np.zeros(3), plane_normal(orientation))
        geometry = transversal(affine, (1, layout.rows, layout.columns))
    except DamagedError as error:
        raise VolumeError(None, str(error)) from None
    if geometry.stack_axis != 0:
        raise VolumeError(None, "is not transversal; reformat the volume and send decoded pixels")
    try:
        with instance.open() as stream:
            stored, slope, intercept = read_stored(frame, stream)
    except DamagedError as error:
        raise VolumeError(None, f"{error}; send decoded pixels") from None
    return Slice(index, np.ascontiguousarray(geometry.plane(stored)), slope, intercept, frame.image.sop_instance_uid)
