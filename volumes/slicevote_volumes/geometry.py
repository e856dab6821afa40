"""Geometry: how a block of voxels in any orientation becomes transversal slices.

World coordinates are DICOM's, patient-based, in mm: x to the patient's left (L), y to posterior (P), z to superior (S);
DICOM PS3.3 C.7.6.2.1.1. `lps_from_ras` converts NIfTI's (RAS) to them. Slices are stacked towards S, rows towards P and
columns towards L, each along the nearest axis of the block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from slicevote_volumes.errors import DamagedError, guarded

Affine = NDArray[np.float64]  # [4, 4]: voxel indices to world coordinates
DEFAULT_ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # rows to the left, columns to posterior

# An acquisition turned by exactly 45 degrees is as near to one axis as to another, and rounding would decide. Looking
# at it from a minutely turned world makes DICOM and NIfTI decide alike. The matrix is antisymmetric, so a rotation to
# first order.
_TURN = np.eye(3) + 1e-4 * np.array([[0.0, -1.0, 0.7], [1.0, 0.0, -0.4], [-0.7, 0.4, 0.0]])


class GeometryError(DamagedError):
    """An affine does not place the voxels in space."""


@dataclass(frozen=True, eq=False)
class Transversal:
    """The way from a block of voxels to transversal slices.

    Attributes:
        orientation: nibabel orientation [3, 2] from the block's axes to (slice, row, column).
        shape: Slices, rows and columns.
        positions_mm: Position of every slice along the slices' normal, ascending.
        spacing_mm: Mean distance between slices, between rows and between columns.
    """

    orientation: NDArray[np.float64] = field(repr=False)
    shape: tuple[int, int, int]
    positions_mm: tuple[float, ...] = field(repr=False)
    spacing_mm: tuple[float, float, float]

    @property
    def stack_axis(self) -> int:
        """The axis of the block along which the slices lie."""
        return int(np.flatnonzero(self.orientation[:, 0] == 0)[0])

    def check_extent(self) -> None:
        """Check that the slices are images.

        Raises:
            GeometryError: They would be one pixel wide or high.
        """
        _, rows, columns = self.shape
        if min(rows, columns) == 1:
            raise GeometryError(
                f"its slices would have {rows} x {columns} pixels; one sagittal or coronal slice is no volume"
            )

    def pixel_spacing_mm(self, known: Sequence[bool] = (True, True, True)) -> tuple[float, float] | None:
        """Return the distance between rows and between columns of the slices in mm; None if it is unknown.

        Args:
            known: For every axis of the block, whether its spacing is known.
        """
        given = {int(target): known[axis] for axis, target in enumerate(self.orientation[:, 0])}
        _, rows, columns = self.spacing_mm
        return (rows, columns) if given[1] and given[2] and rows > 0 and columns > 0 else None

    def slices(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return the block as [slices, rows, columns]: a view, nothing is copied."""
        oriented: NDArray[Any] = apply_orientation(block, self.orientation)  # type: ignore[no-untyped-call]
        return oriented

    def plane(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Return one plane of the block, cut across the stack axis, as [rows, columns]: a view."""
        view: NDArray[Any] = self.slices(np.expand_dims(plane, self.stack_axis))[0]
        return view

    def plane_index(self, index: int) -> int:
        """Return the index along the stack axis of the plane that is slice `index`."""
        return index if self.orientation[self.stack_axis, 1] > 0 else self.shape[0] - 1 - index


def transversal(affine: Affine, shape: tuple[int, int, int], origins: NDArray[np.float64] | None = None) -> Transversal:
    """Return the nearest axial orientation of a block of voxels.

    Args:
        affine: [4, 4], voxel indices to LPS coordinates in mm.
        shape: Extent of the block along its three axes.
        origins: [shape[0], 3], the true places of the planes along the first axis, if they are not equidistant.

    Raises:
        DamagedError: The affine is not finite, is out of range, or does not span three dimensions.
    """
    if not np.isfinite(affine).all():
        raise GeometryError("the affine has values that are not finite")
    turned = affine.copy()
    turned[:3, :3] = _TURN @ affine[:3, :3]
    with np.errstate(all="ignore"), guarded("the affine has values out of range"):
        orientation = io_orientation(turned)  # type: ignore[no-untyped-call]
    if np.isnan(orientation).any():
        raise GeometryError("the affine does not span three dimensions")
    orientation[:, 0] = 2 - orientation[:, 0]  # columns along x, rows along y, slices along z

    oriented: Affine = affine @ inv_ornt_aff(orientation, shape)  # type: ignore[no-untyped-call]
    slice_step, row_step, column_step, first = (oriented[:3, axis] for axis in range(4))
    normal = np.cross(column_step, row_step)
    length = np.linalg.norm(normal)
    if not length:
        raise GeometryError("rows and columns of the affine are parallel")
    normal *= np.sign(normal @ slice_step) / length
    extents = [0, 0, 0]
    for axis, target in enumerate(orientation[:, 0]):
        extents[int(target)] = shape[axis]
    count, rows, columns = extents
    if origins is not None and orientation[0, 0] == 0:
        positions = (origins if orientation[0, 1] > 0 else origins[::-1]) @ normal
    else:
        positions = first @ normal + np.arange(count) * (slice_step @ normal)
    spacing = tuple(float(np.linalg.norm(oriented[:3, axis])) for axis in range(3))
    return Transversal(
        orientation, (count, rows, columns), tuple(positions.tolist()), (spacing[0], spacing[1], spacing[2])
    )


def lps_from_ras(affine: NDArray[Any], unit_mm: float = 1.0) -> Affine:
    """Return the affine to LPS coordinates in mm of a NIfTI affine, which is to RAS coordinates in some unit."""
    scale = np.diag([-unit_mm, -unit_mm, unit_mm, 1.0])
    lps: Affine = scale @ np.asarray(affine, dtype=np.float64)
    return lps


def plane_normal(orientation: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the unit normal of a DICOM plane.

    Args:
        orientation: ImageOrientationPatient: direction of increasing column, then of increasing row.

    Raises:
        GeometryError: The two directions are parallel, zero or not finite.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    length = np.linalg.norm(normal)
    if not np.isfinite(length) or length < 1e-6:
        raise GeometryError("ImageOrientationPatient (0020,0037) does not give two directions")
    unit: NDArray[np.float64] = normal / length
    return unit


def plane_name(orientation: tuple[float, ...]) -> str:
    """Return the anatomical plane that is nearest to a DICOM plane: axial, coronal or sagittal.

    Args:
        orientation: ImageOrientationPatient: direction of increasing column, then of increasing row.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(normal)))]


def dicom_affine(
    orientation: tuple[float, ...], pixel_spacing: tuple[float, float], first: NDArray[np.float64], step: NDArray[Any]
) -> Affine:
    """Return the affine of a stack of DICOM planes, for a block [plane, row, column].

    Args:
        orientation: ImageOrientationPatient: direction of increasing column, then of increasing row.
        pixel_spacing: Distance in mm between rows, then between columns.
        first: [3], ImagePositionPatient of the first plane.
        step: [3], from one plane to the next.
    """
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = np.array(orientation[3:]) * pixel_spacing[0]
    affine[:3, 2] = np.array(orientation[:3]) * pixel_spacing[1]
    affine[:3, 3] = first
    return affine
