"""Stored values of one frame of a DICOM file.

Plain grey pixels, which is what most scanners write, are read from their place in the file and nothing is parsed
again. Everything else goes through pydicom's decoders.
"""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from slicevote_volumes.decoding import DecodingProcess
from slicevote_volumes.dicom_image import UNDEFINED_LENGTH, Frame, PixelLayout
from slicevote_volumes.model import ELEMENT_TYPES, VolumeError
from slicevote_volumes.quiet import DamagedError, guarded

_DECODING = DecodingProcess()

_BYTE_ORDER = {ImplicitVRLittleEndian: "<", ExplicitVRLittleEndian: "<", ExplicitVRBigEndian: ">"}
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in YBR_FULL (PS3.3 C.7.6.3.1.2)


def read_stored(frame: Frame, stream: BinaryIO) -> tuple[NDArray[Any], float, float]:
    """Reads the stored values of a frame, bright where the image is bright.

    MONOCHROME1 is inverted except for CT, whose values are HU however they are displayed. Colour becomes luminance.

    Args:
        frame: Which one.
        stream: The file that the frame was found in, from its beginning.

    Returns:
        [rows, columns] of one of `ELEMENT_TYPES`, slope and intercept. The array may be read-only.

    Raises:
        VolumeError: The pixels are cut short or cannot be decoded.
    """
    layout = frame.file.layout
    dtype = _plain_dtype(layout)
    stored = _decoded(frame, stream) if dtype is None else _plain(frame, stream, dtype)
    slope, intercept = frame.rescale_slope, frame.rescale_intercept
    bits = layout.bits_stored
    if layout.has_modality_lut:
        stored, slope, intercept, bits = _looked_up(stored, frame, stream)
    if layout.photometric == "MONOCHROME1" and frame.file.modality != "CT":
        stored = _inverted(stored, bits)
    if stored.shape != (layout.rows, layout.columns):
        raise VolumeError(frame.file.path, f"decodes to {stored.shape}, not {layout.rows} x {layout.columns}")
    if stored.dtype not in ELEMENT_TYPES:
        stored = stored.astype(np.float64)
    return stored, slope, intercept


def _plain_dtype(layout: PixelLayout) -> np.dtype[Any] | None:
    """Gives the type as stored, or None where the pixels are not just one number after another."""
    order = _BYTE_ORDER.get(layout.transfer_syntax)
    if order is None or layout.samples != 1 or layout.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    if layout.keyword == "FloatPixelData":
        return np.dtype(f"{order}f4")
    if layout.keyword == "DoubleFloatPixelData":
        return np.dtype(f"{order}f8")
    # 8 bits in big-endian words come in swapped pairs; pydicom knows.
    if layout.bits_allocated not in (8, 16, 32) or (layout.bits_allocated == 8 and order == ">"):
        return None
    return np.dtype(f"{order}{'i' if layout.is_signed else 'u'}{layout.bits_allocated // 8}")


def _plain(frame: Frame, stream: BinaryIO, dtype: np.dtype[Any]) -> NDArray[Any]:
    layout = frame.file.layout
    size = layout.rows * layout.columns * dtype.itemsize
    if layout.length < size * (frame.index + 1) or layout.length == UNDEFINED_LENGTH:
        raise _cut_short(frame, layout.length, size * layout.frames)
    stream.seek(layout.offset + size * frame.index)
    data = stream.read(size)
    if len(data) != size:
        raise _cut_short(frame, size * frame.index + len(data), size * layout.frames)
    stored = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    if not dtype.isnative:
        stored = stored.astype(dtype.newbyteorder("="))
    unused = layout.bits_allocated - layout.bits_stored
    if unused > 0 and layout.keyword == "PixelData":  # the bits above may hold anything, PS3.5 8.1.1
        stored = np.right_shift(np.left_shift(stored, unused), unused)
    return stored


def _cut_short(frame: Frame, found: int, expected: int) -> VolumeError:
    return VolumeError(frame.file.path, f"pixel data are cut short: {found} of {expected} bytes")


def _decoded(frame: Frame, stream: BinaryIO) -> NDArray[Any]:
    """Decodes a frame that is compressed, in colour or packed in some other way."""
    layout = frame.file.layout
    try:
        with guarded():
            if layout.transfer_syntax == DeflatedExplicitVRLittleEndian:
                stored = _from_dataset(_dataset(stream, pixels=True), frame)
            elif layout.transfer_syntax.is_encapsulated:
                stored = _decompressed(frame, stream)
            else:
                stream.seek(layout.offset)
                decoder = get_decoder(layout.transfer_syntax)
                stored, _ = decoder.as_array(stream, index=frame.index, **_options(layout))
            if layout.photometric == "PALETTE COLOR":
                stored = apply_color_lut(stored, _dataset(stream))
            return luminance(stored) if stored.ndim == 3 else stored
    except DamagedError as error:
        name = layout.transfer_syntax.name
        raise VolumeError(
            frame.file.path, f"pixel data cannot be decoded, frame {frame.index}, {name} ({error})"
        ) from None


def _decompressed(frame: Frame, stream: BinaryIO) -> NDArray[Any]:
    """Takes one frame out of its capsule and has it decoded where a crash does no harm."""
    layout = frame.file.layout
    stream.seek(layout.offset)
    alone = get_frame(stream, frame.index, number_of_frames=layout.frames)
    options = {**_options(layout), "number_of_frames": 1}
    return _DECODING.decode(str(layout.transfer_syntax), encapsulate([alone]), options)


def _options(layout: PixelLayout) -> dict[str, Any]:
    """Gives what pydicom's decoders must be told of pixels that do not come in a data set."""
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.frames,
        "samples_per_pixel": layout.samples,
        "planar_configuration": layout.planar_configuration,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.is_signed),
        "pixel_keyword": layout.keyword,
        "pixel_vr": layout.vr,
    }


def _from_dataset(dataset: Dataset, frame: Frame) -> NDArray[Any]:
    stored: NDArray[Any] = dataset.pixel_array
    return stored[frame.index] if frame.file.layout.frames > 1 else stored


def _dataset(stream: BinaryIO, *, pixels: bool = False) -> Dataset:
    stream.seek(0)
    return dcmread(stream, stop_before_pixels=not pixels, force=True)


def _looked_up(stored: NDArray[Any], frame: Frame, stream: BinaryIO) -> tuple[NDArray[Any], float, float, int]:
    """Applies the Modality LUT Sequence, which takes the place of slope and intercept (PS3.3 C.11.1)."""
    try:
        with guarded():
            values = apply_modality_lut(stored, _dataset(stream))
    except DamagedError as error:
        raise VolumeError(frame.file.path, f"ModalityLUTSequence (0028,3000) cannot be applied ({error})") from None
    return values, 1.0, 0.0, 8 * values.dtype.itemsize


def _inverted(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    inverted: NDArray[Any]
    if stored.dtype.kind == "u":
        inverted = stored.dtype.type((1 << bits) - 1) - stored
    else:
        inverted = np.invert(stored) if stored.dtype.kind == "i" else np.negative(stored)
    return inverted


def luminance(colour: NDArray[Any]) -> NDArray[Any]:
    """Turns RGB [rows, columns, 3 or more] into luminance [rows, columns] of the same type."""
    grey = colour[..., :3].astype(np.float32) @ _LUMINANCE
    return grey.round().astype(colour.dtype) if colour.dtype.kind in "iu" else grey.astype(colour.dtype)
