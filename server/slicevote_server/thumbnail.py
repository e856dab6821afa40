"""Thumbnails: the small pictures that an archive keeps of its slices."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from slicevote_server.resampling import resample

THUMBNAIL_SIZE = 96
"""Longer side of a thumbnail, in pixels."""

_WEBP_QUALITY = 70


def encode_thumbnail(grey: NDArray[np.float32], pixel_spacing_mm: tuple[float, float] | None = None) -> bytes:
    """Return a thumbnail: WebP, true in its proportions, longer side `THUMBNAIL_SIZE` pixels.

    Args:
        grey: float32 [rows, columns] in [0, 1].
        pixel_spacing_mm: Distance between rows and between columns; None: pixels are taken as square.
    """
    row_mm, column_mm = pixel_spacing_mm or (1.0, 1.0)
    height, width = grey.shape[0] * row_mm, grey.shape[1] * column_mm
    shrink = THUMBNAIL_SIZE / max(height, width)
    small = resample(grey, max(1, round(height * shrink)), max(1, round(width * shrink)))
    encoded, data = cv2.imencode(
        ".webp", np.rint(small * 255).astype(np.uint8), [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY]
    )
    return data.tobytes() if encoded else b""
