"""Conversion of pixels to grey values: the input of a backbone.

CT is windowed in Hounsfield units; everything else by the volume's intensity range or, without one, by each slice's own
percentiles. An archive records the policy, because vectors made under different policies cannot be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from slicevote.contract import INPUT_SIZE
from slicevote_volumes import IntensityRange, Slice
from slicevote_volumes.modality import CT

from slicevote_server.errors import InvalidInput
from slicevote_server.resampling import resample
from slicevote_server.thumbnail import encode_thumbnail

BLANK_CONTRAST = 1 / 255
"""A slice whose grey values span less than one step of an 8-bit display is blank."""


@dataclass(frozen=True)
class IntensityPolicy:
    """How grey values are made of pixels.

    Attributes:
        version: Counts up whenever the same settings give other grey values.
        ct_window_hu: Values of CT that are black and white, in HU.
        low_percentile: Percentile of a slice that is black where the volume has no intensity range, 0 to 100.
        high_percentile: The one that is white.
        smoothing_px: Standard deviation of the Gaussian that the resampled slice is smoothed with, in pixels of 224;
            0 smooths nothing, as in the paper. No gain has been measured; see docs/explanation/design.md.
    """

    version: int = 1
    ct_window_hu: tuple[float, float] = (-1000.0, 1000.0)
    low_percentile: float = 1.0
    high_percentile: float = 99.0
    smoothing_px: float = 1.0


@dataclass(frozen=True)
class GreySlice:
    """What is left of a slice once it has been prepared.

    Attributes:
        index: Index of the slice in its volume.
        grey: float32 [224, 224] in [0, 1], or None for a blank slice.
        thumbnail: WebP, or empty where none was asked for or the slice is blank.
        sop_instance_uid: The slice's DICOM UID, or empty.
    """

    index: int
    grey: NDArray[np.float32] | None
    thumbnail: bytes
    sop_instance_uid: str


def prepare(
    image: Slice,
    *,
    modality: str,
    intensity_range: IntensityRange | None,
    policy: IntensityPolicy,
    thumbnail: bool,
    pixel_spacing_mm: tuple[float, float] | None = None,
) -> GreySlice:
    """Window and resample one slice.

    Args:
        image: The slice.
        modality: DICOM modality code of its volume; empty if unknown.
        intensity_range: Values to show as black and white, for all but CT.
        policy: How pixels become grey values.
        thumbnail: Also make a thumbnail.
        pixel_spacing_mm: Distance between rows and between columns, for the thumbnail's proportions.

    Raises:
        InvalidInput: The slice has values that are not finite.
    """
    stored = image.pixels
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise InvalidInput(
            f"slice {image.index} has values that are not finite (NaN or infinity); replace them before sending",
            reason="VALUES_NOT_FINITE",
            field="slice.pixels.data",
        )
    window = _window(image, modality, intensity_range, policy)
    if window is None:
        return GreySlice(image.index, None, b"", image.sop_instance_uid)
    low, high = window
    scale = 1.0 / (high - low)
    # One multiplication and one addition for rescaling and windowing together. Halfway through, the numbers stay
    # small enough for float32: wide integers are rare and exact only to 24 bits anyway.
    with np.errstate(over="ignore", invalid="ignore"):
        grey = stored.astype(np.float32)
        grey *= np.float32(image.rescale_slope * scale)
        grey += np.float32((image.rescale_intercept - low) * scale)
    np.clip(grey, 0.0, 1.0, out=grey)
    contrast = float(grey.max()) - float(grey.min())
    if not math.isfinite(contrast):
        raise InvalidInput(
            f"slice {image.index} has values, or a rescale or intensity range, too large to compute with",
            reason="VALUES_NOT_FINITE",
            field="slice.pixels",
        )
    if contrast < BLANK_CONTRAST:
        return GreySlice(image.index, None, b"", image.sop_instance_uid)
    picture = encode_thumbnail(grey, pixel_spacing_mm) if thumbnail else b""
    resampled = resample(grey, INPUT_SIZE, INPUT_SIZE)
    if policy.smoothing_px > 0:
        resampled = cast("NDArray[np.float32]", cv2.GaussianBlur(resampled, (0, 0), policy.smoothing_px))
    return GreySlice(image.index, resampled, picture, image.sop_instance_uid)


def _window(
    image: Slice, modality: str, intensity_range: IntensityRange | None, policy: IntensityPolicy
) -> tuple[float, float] | None:
    """Return the values that are black and white, in rescaled units; None if the slice has no contrast."""
    if modality == CT:
        return policy.ct_window_hu
    if intensity_range is not None:
        return intensity_range.low, intensity_range.high
    percentiles = np.percentile(image.pixels, [policy.low_percentile, policy.high_percentile])
    low, high = sorted(float(value) * image.rescale_slope + image.rescale_intercept for value in percentiles)
    if high > low:
        return low, high
    low, high = sorted(
        float(value) * image.rescale_slope + image.rescale_intercept
        for value in (image.pixels.min(), image.pixels.max())
    )
    return (low, high) if high > low else None
