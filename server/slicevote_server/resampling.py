"""Resampling of grey pictures."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray


def resample(grey: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Resample to `[rows, columns]`: area averaging where it shrinks, linear interpolation where it grows."""
    height, width = grey.shape
    if height > rows or width > columns:
        grey = _resize(grey, min(height, rows), min(width, columns), cv2.INTER_AREA)
    if grey.shape != (rows, columns):
        grey = _resize(grey, rows, columns, cv2.INTER_LINEAR)
    return grey


def _resize(grey: NDArray[np.float32], rows: int, columns: int, interpolation: int) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", cv2.resize(grey, (columns, rows), interpolation=interpolation))
