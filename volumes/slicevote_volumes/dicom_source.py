"""Where the slices of a DICOM volume come from: one file after another, or all of them reformatted."""

from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.dicom_header import is_deflated, parse_frames
from slicevote_volumes.dicom_image import Frame
from slicevote_volumes.dicom_pixels import read_stored
from slicevote_volumes.geometry import (
    DEFAULT_ORIENTATION,
    GeometryError,
    Transversal,
    dicom_affine,
    plane_normal,
    transversal,
)
from slicevote_volumes.held import Held
from slicevote_volumes.model import Slice, VolumeError
from slicevote_volumes.quiet import NotAScan, os_reason


class StackSource:
    """Frames that are transversal already: each is decoded when asked for, and turned within its plane."""

    def __init__(self, frames: tuple[Frame, ...], geometry: Transversal) -> None:
        """Takes the frames in the order of the slices."""
        self._frames = frames
        self._geometry = geometry

    def read(self, index: int) -> Slice:
        """Decodes a slice."""
        frame = self._frames[index]
        stored, slope, intercept = _read(frame, index)
        pixels = np.ascontiguousarray(self._geometry.plane(stored))
        return Slice(index, pixels, slope, intercept, frame.file.sop_instance_uid)

    def release(self) -> None:
        """Nothing is kept."""


class ReformattedSource:
    """Frames that are sagittal or coronal: all are decoded at once, and transversal slices cut from the block."""

    def __init__(self, frames: tuple[Frame, ...], geometry: Transversal) -> None:
        """Takes the frames in the order of the geometry's first axis."""
        self._frames = frames
        self._geometry = geometry
        self._block = Held(self._read_block)

    def read(self, index: int) -> Slice:
        """Cuts a slice."""
        block, slope, intercept = self._block.get()
        return Slice(index, np.ascontiguousarray(block[index]), slope, intercept)

    def release(self) -> None:
        """Drops the block."""
        self._block.release()

    def _read_block(self) -> tuple[NDArray[Any], float, float]:
        planes = [_read(frame, index) for index, frame in enumerate(self._frames)]
        rescales = {(slope, intercept) for _, slope, intercept in planes}
        if len(rescales) == 1:
            slope, intercept = rescales.pop()
            block = np.stack([stored for stored, _, _ in planes])
        else:  # a slice cuts through frames of different scale
            slope, intercept = 1.0, 0.0
            block = np.stack([Slice(0, *plane).values() for plane in planes])
        return self._geometry.slices(block), slope, intercept


def _read(frame: Frame, index: int) -> tuple[NDArray[Any], float, float]:
    path = frame.file.path
    assert path is not None
    try:
        with path.open("rb") as file:
            return read_stored(frame, file)
    except OSError as error:
        raise VolumeError(path, f"slice {index} {os_reason(error)}") from error
    except VolumeError as error:
        raise VolumeError(path, f"slice {index}: {error.reason}") from error


def decode_instance(data: bytes, index: int) -> Slice:
    """Decodes a DICOM Part-10 file in memory that holds one transversal slice.

    Args:
        data: The file.
        index: Which slice of its volume it is.

    Returns:
        The slice, oriented within its plane.

    Raises:
        VolumeError: It is no single-frame, transversal image; says what to do instead.
    """
    stream: BinaryIO = BytesIO(data)
    if is_deflated(stream):  # a few kilobytes could inflate to gigabytes
        raise VolumeError(None, f"slice {index}: is a deflated data set; send it uncompressed, or decoded pixels")
    try:
        frames = parse_frames(stream, None)
    except NotAScan:
        raise VolumeError(None, f"slice {index}: no DICOM image; send a Part-10 file, or decoded pixels") from None
    frame = frames[0]
    if len(frames) > 1:
        raise VolumeError(None, f"slice {index}: has {len(frames)} frames; send each as decoded pixels")
    orientation = frame.orientation or DEFAULT_ORIENTATION
    layout = frame.file.layout
    try:
        step = plane_normal(orientation)
        affine = dicom_affine(orientation, frame.pixel_spacing, np.zeros(3), step)
        geometry = transversal(affine, (1, layout.rows, layout.columns))
    except GeometryError as error:
        raise VolumeError(None, f"slice {index}: {error}") from None
    if geometry.stack_axis != 0:
        raise VolumeError(None, f"slice {index}: is not transversal; reformat the volume and send decoded pixels")
    try:
        stored, slope, intercept = read_stored(frame, stream)
    except VolumeError as error:
        raise VolumeError(None, f"slice {index}: {error.reason}; send decoded pixels") from error
    return Slice(index, np.ascontiguousarray(geometry.plane(stored)), slope, intercept, frame.file.sop_instance_uid)
