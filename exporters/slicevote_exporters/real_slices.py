"""Compare nearest neighbours of real slices, to see whether a precision changes what is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from slicevote.contract import INPUT_SIZE
from slicevote_volumes import Volume, VolumeError, discover
from torch.nn import functional

from slicevote_exporters.built import FloatArray
from slicevote_exporters.errors import ExportError

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
MOST_SLICES = 512
MOST_SLICES_PER_VOLUME = 16


@dataclass(frozen=True)
class NeighbourReport:
    """How many real slices keep their nearest neighbours in a precision."""

    slice_count: int
    volume_count: int
    unchanged_share: float
    """Share of the slices whose most similar other slice is the same in the file and in PyTorch, 0 to 1."""
    minimum_cosine: float
    mean_cosine: float


def read_slices(path: Path) -> tuple[FloatArray, int]:
    """Read evenly spaced slices of the volumes under a path: up to 16 of each, and about 512 in all.

    A slice's 0.5 and 99.5 percentiles become 0 and 1, and it is resized to 224 x 224 by area. The server prepares
    slices differently, which does not matter for the comparison. Slices without contrast are left out.

    Args:
        path: A folder or file of DICOM or NIfTI.

    Returns:
        float32 `[N, 224, 224]` in [0, 1], and the number of volumes they come from.

    Raises:
        ExportError: Fewer than two slices with contrast lie under the path.
    """
    volumes = discover([path]).volumes[:MOST_SLICES]
    each = min(MOST_SLICES_PER_VOLUME, max(1, MOST_SLICES // max(1, len(volumes))))
    read = [slices for volume in volumes if (slices := _grey_slices(volume, each))]
    slices = [item for of_volume in read for item in of_volume]
    if len(slices) < 2:
        raise ExportError(f"{path} holds no two slices with contrast; give --check-on a folder of readable volumes")
    return np.stack(slices), len(read)


def compare_neighbours(reference: FloatArray, embeddings: FloatArray, volume_count: int) -> NeighbourReport:
    """Compare the nearest neighbours of slices in two sets of unit vectors, both float32 `[N, D]`."""
    cosines = (reference.astype(np.float64) * embeddings).sum(axis=1)
    unchanged = nearest_others(reference) == nearest_others(embeddings)
    return NeighbourReport(
        slice_count=len(reference),
        volume_count=volume_count,
        unchanged_share=float(unchanged.mean()),
        minimum_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
    )


def nearest_others(vectors: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """Return the index of the most similar other vector for each of the unit vectors float32 `[N, D]`; int `[N]`."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: np.ndarray[tuple[int, ...], np.dtype[np.intp]] = similarity.argmax(axis=1)
    return nearest


def grey(values: FloatArray) -> FloatArray | None:
    """Return a slice's values as grey values, float32 `[224, 224]` in [0, 1]; None if it has no contrast."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    low, high = np.percentile(finite, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if not high > low:
        return None
    scaled = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1).astype(np.float32)
    resized = functional.interpolate(torch.from_numpy(scaled)[None, None], (INPUT_SIZE, INPUT_SIZE), mode="area")
    result: FloatArray = resized[0, 0].numpy()
    return result


def _grey_slices(volume: Volume, count: int) -> list[FloatArray]:
    """Return evenly spaced slices of a volume as grey values; an empty list if the volume cannot be read."""
    wanted = [round(place) for place in np.linspace(0, len(volume) - 1, min(len(volume), count + 2))]
    try:
        slices = [grey(item.values()) for item in volume.slices(wanted[1:-1] or wanted)]
    except VolumeError:
        return []
    finally:
        volume.release()
    return [item for item in slices if item is not None]
