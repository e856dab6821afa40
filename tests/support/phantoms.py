"""Volumes drawn by the tests."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Volume, read_volumes


def phantom(seed: int, *, slices: int = 12, side: int = 48, blank: tuple[int, ...] = ()) -> NDArray[np.int16]:
    """Draws a stack of pictures that change slowly from slice to slice, int16 [slices, rows, columns].

    Args:
        seed: What is drawn; other seeds give other pictures.
        slices: How many slices.
        side: Rows and columns.
        blank: Slices without contrast.
    """
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-900, 900, size=(2, 6, 6))
    stack = []
    for index in range(slices):
        mixed = coarse[0] + (coarse[1] - coarse[0]) * index / max(1, slices - 1)
        picture = np.kron(mixed, np.ones((side // 6, side // 6)))
        stack.append(np.full_like(picture, -1000) if index in blank else picture)
    return np.asarray(stack).astype(np.int16)


def write_nifti(path: Path, stack: NDArray[np.int16], *, spacing_mm: float = 5.0, start_mm: float = 0.0) -> Path:
    """Writes slices [slices, rows, columns] (anterior to posterior, right to left) as an axial NIfTI file."""
    affine = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, spacing_mm, start_mm], [0, 0, 0, 1]])
    nibabel.Nifti1Image(np.ascontiguousarray(stack.transpose(2, 1, 0)), affine).to_filename(path)
    return path


def phantom_volume(folder: Path, seed: int, *, modality: str = "CT", slices: int = 12, **options: object) -> Volume:
    """Draws a phantom, writes it, and reads it as a user's file."""
    path = write_nifti(folder / f"phantom-{seed}-{slices}.nii.gz", phantom(seed, slices=slices, **options))
    (volume,) = read_volumes(path, modality=modality)
    return volume
