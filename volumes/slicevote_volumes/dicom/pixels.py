"""Stored values of one frame of a DICOM instance.

Plain grey pixels, which most scanners write, are read from their place in the instance and nothing is parsed again.
Everything else goes through pydicom's decoders.
"""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from slicevote_volumes.dicom.decoder_process import DecoderProcess
from slicevote_volumes.dicom.image import UNDEFINED_LENGTH, Frame, PixelLayout
from slicevote_volumes.errors import DamagedError, guarded
from slicevote_volumes.modality import CT
from slicevote_volumes.volume import ELEMENT_TYPES, luminance

_DECODER = DecoderProcess()

_BYTE_ORDER = {ImplicitVRLittleEndian: "<", ExplicitVRLittleEndian: "<", ExplicitVRBigEndian: ">"}


def read_stored(frame: Frame, stream: BinaryIO) -> tuple[NDArray[Any], float, float]:
    """Read the stored values of a frame, bright where the image is bright.

    MONOCHROME1 is inverted except for CT, whose values are HU however they are displayed. Colour becomes luminance.

    Args:
        frame: The frame.
        stream: Its instance, opened.

    Returns:
        Pixels [rows, columns] of one of `ELEMENT_TYPES`, slope and intercept. The array may be read-only.

    Raises:
        DamagedError: The pixels are cut short or cannot be decoded.
        OSError: The stream cannot be read.
    """
    layout = frame.image.layout
    dtype = _plain_dtype(layout)
    stored = _decoded(frame, stream) if dtype is None else _plain(frame, stream, dtype)
    slope, intercept = frame.rescale_slope, frame.rescale_intercept
    bits = layout.bits_stored
    if layout.has_modality_lut:
        stored, slope, intercept, bits = _looked_up(stored, stream)
    if layout.photometric == "MONOCHROME1" and frame.image.modality != CT:
        stored = _inverted(stored, bits)
    if stored.dtype not in ELEMENT_TYPES:
        stored = stored.astype(np.float64)
    return stored, slope, intercept


def _plain_dtype(layout: PixelLayout) -> np.dtype[Any] | None:
    """Return the type as stored, or None if the pixels are not just one number after another."""
    order = _BYTE_ORDER.get(layout.transfer_syntax)
    if order is None or layout.samples != 1 or layout.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    if layout.keyword == "FloatPixelData":
        return np.dtype(f"{order}f4")
    if layout.keyword == "DoubleFloatPixelData":
        return np.dtype(f"{order}f8")
    # 8 bits in big-endian words come in swapped pairs; pydicom handles them.
    if layout.bits_allocated not in (8, 16, 32) or (layout.bits_allocated == 8 and order == ">"):
        return None
    return np.dtype(f"{order}{'i' if layout.is_signed else 'u'}{layout.bits_allocated // 8}")


def _plain(frame: Frame, stream: BinaryIO, dtype: np.dtype[Any]) -> NDArray[Any]:
    layout = frame.image.layout
    size = layout.rows * layout.columns * dtype.itemsize
    if layout.length < size * (frame.index + 1) or layout.length == UNDEFINED_LENGTH:
        raise _cut_short(layout.length, size * layout.frames)
    stream.seek(layout.offset + size * frame.index)
    data = stream.read(size)
    if len(data) != size:
        raise _cut_short(size * frame.index + len(data), size * layout.frames)
    stored = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    if not dtype.isnative:
        stored = stored.astype(dtype.newbyteorder("="))
    unused = layout.bits_allocated - layout.bits_stored
    if unused > 0 and layout.keyword == "PixelData":  # the bits above may hold anything, PS3.5 8.1.1
        stored = np.right_shift(np.left_shift(stored, unused), unused)
    return stored


def _cut_short(found: int, expected: int) -> DamagedError:
    return DamagedError(f"pixel data are cut short: {found} of {expected} bytes")


def _decoded(frame: Frame, stream: BinaryIO) -> NDArray[Any]:
    """Decode a frame that is compressed, in colour or packed in some other way."""
    layout = frame.image.layout
    reason = f"pixel data cannot be decoded, frame {frame.index}, {layout.transfer_syntax.name}"
    with guarded(reason):
        is_encapsulated = layout.transfer_syntax.is_encapsulated  # refuses what is no transfer syntax
    if layout.transfer_syntax == DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        with guarded(reason):
            stored: NDArray[Any] = pixel_array(dcmread(stream, force=True), index=frame.index)
    elif is_encapsulated:
        stored = _decompressed(frame, stream, reason)
    else:
        stream.seek(layout.offset)
        options = _options(layout)
        with guarded(reason):
            stored, _ = get_decoder(layout.transfer_syntax).as_array(stream, index=frame.index, **options)
    if layout.photometric == "PALETTE COLOR":
        dataset = _without_pixels(stream, reason)
        with guarded(reason):
            stored = apply_color_lut(stored, dataset)
    if stored.shape[:2] != (layout.rows, layout.columns) or stored.shape[2:] not in ((), (3,), (4,)):
        raise DamagedError(f"{reason}: it decodes to {stored.shape}, not {layout.rows} x {layout.columns}")
    return luminance(stored) if stored.ndim == 3 else stored


def _decompressed(frame: Frame, stream: BinaryIO, reason: str) -> NDArray[Any]:
    """Take one frame out of its encapsulation and decode it where a crash does no harm."""
    layout = frame.image.layout
    stream.seek(layout.offset)
    with guarded(reason):
        alone = encapsulate([get_frame(stream, frame.index, number_of_frames=layout.frames)])
    options = {**_options(layout), "number_of_frames": 1}
    try:
        return _DECODER.decode(str(layout.transfer_syntax), alone, options)
    except DamagedError as error:
        raise DamagedError(f"{reason} ({error})") from None


def _options(layout: PixelLayout) -> dict[str, Any]:
    """Return what pydicom's decoders must be told about pixels that do not come in a data set."""
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


def _without_pixels(stream: BinaryIO, reason: str) -> Dataset:
    stream.seek(0)
    with guarded(reason):
        return dcmread(stream, stop_before_pixels=True, force=True)


def _looked_up(stored: NDArray[Any], stream: BinaryIO) -> tuple[NDArray[Any], float, float, int]:
    """Apply the Modality LUT Sequence, which takes the place of slope and intercept (PS3.3 C.11.1)."""
    reason = "ModalityLUTSequence (0028,3000) cannot be applied"
    dataset = _without_pixels(stream, reason)
    with guarded(reason):
        values = apply_modality_lut(stored, dataset)
    return values, 1.0, 0.0, 8 * values.dtype.itemsize


def _inverted(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    inverted: NDArray[Any]
    if stored.dtype.kind == "u":
        inverted = stored.dtype.type((1 << min(bits, 8 * stored.dtype.itemsize)) - 1) - stored
    else:
        inverted = np.invert(stored) if stored.dtype.kind == "i" else np.negative(stored)
    return inverted
