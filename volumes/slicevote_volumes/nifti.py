"""NIfTI files: .nii, .nii.gz, and pairs of .hdr and .img. One volume, or one for every protocol of a 4-D file."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.dicom_pixels import luminance
from slicevote_volumes.geometry import GeometryError, Transversal, lps_from_ras, transversal
from slicevote_volumes.held import Held
from slicevote_volumes.identity import sha256_of, volume_id
from slicevote_volumes.model import ELEMENT_TYPES, Slice, Volume, VolumeError
from slicevote_volumes.quiet import DamagedError, guarded, os_reason

SUFFIXES = (".nii", ".nii.gz", ".img", ".img.gz", ".hdr", ".hdr.gz")
UNITS_MM = {1: 1000.0, 3: 0.001}  # xyzt_units, its lower three bits: metre, micrometre; all else is mm


def is_nifti_name(path: Path) -> bool:
    """Tells by the name whether a file is NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, modality: str = "") -> list[Volume]:
    """Reads the header of a NIfTI file.

    Args:
        path: The file; of a pair either one.
        modality: DICOM modality code, which NIfTI does not know.

    Raises:
        VolumeError: It is damaged, or holds no scan.
    """
    try:
        with guarded():
            image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 and single files derive from it
            kind = type(image).__name__
            raise VolumeError(path, f"is {kind}, which does not say how it lies in space; convert to NIfTI")
        voxels = _voxels(path, image)
        digest = sha256_of(tuple(sorted({Path(str(part.filename)) for part in image.file_map.values()})))
    except DamagedError as error:
        raise VolumeError(path, f"is not NIfTI although its name says so, or its header is damaged ({error})") from None
    except OSError as error:
        raise VolumeError(path, os_reason(error)) from error
    unit_mm = UNITS_MM.get(int(image.header["xyzt_units"]) % 8, 1.0)
    try:
        geometry = transversal(lps_from_ras(image.affine, unit_mm), voxels.shape)
        geometry.check_extent()
    except GeometryError as error:
        raise VolumeError(path, str(error)) from None

    held = Held(voxels.read_all, voxels.protocols)
    names = [str(protocol) for protocol in range(voxels.protocols)] if voxels.is_4d else [""]
    return [
        Volume(
            id=volume_id("nifti", digest, {"protocol": name} if name else {}),
            positions_mm=geometry.positions_mm,
            shape=geometry.shape[1:],
            slice_source=_NiftiSource(voxels, protocol, geometry, held),
            source=f"{path}:{name}" if name else str(path),
            paths=(path,),
            modality=modality,
            labels={key: value for key, value in (("modality", modality), ("protocol", name)) if value},
        )
        for protocol, name in enumerate(names)
    ]


@dataclass(frozen=True, eq=False)
class _Voxels:
    """Where the voxels of a file begin and how they are stored, the first axis fastest."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    protocols: int
    is_4d: bool
    slope: float
    intercept: float

    @property
    def is_compressed(self) -> bool:
        return self.path.name.lower().endswith(".gz")

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Reads voxels as stored.

        Raises:
            VolumeError: The file ends before them, or is damaged.
        """
        size = count * self.dtype.itemsize
        try:
            with guarded(), self._open() as file:
                file.seek(self.offset + first * self.dtype.itemsize)
                data = file.read(size)
        except (OSError, DamagedError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else f"cannot be decompressed ({error})"
            raise VolumeError(self.path, f"{reason}; the file is damaged or gone") from error
        if len(data) != size:
            raise self.cut_short()
        return np.frombuffer(data, self.dtype)

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, gzip.open(self.path)) if self.is_compressed else self.path.open("rb")

    def read_all(self) -> NDArray[Any]:
        """Reads the whole file, [*shape, protocols]."""
        return self.read(0, int(np.prod(self.shape)) * self.protocols).reshape(*self.shape, self.protocols, order="F")

    def read_plane(self, index: int, protocol: int) -> NDArray[Any]:
        """Reads one plane across the last axis, [shape[0], shape[1]]."""
        columns, rows, planes = self.shape
        first = (protocol * planes + index) * rows * columns
        return self.read(first, rows * columns).reshape(columns, rows, order="F")

    def cut_short(self) -> VolumeError:
        return VolumeError(self.path, "is cut short: it ends before the last voxel that its header announces")


def _voxels(path: Path, image: Any) -> _Voxels:
    proxy = image.dataobj
    extents = tuple(int(extent) for extent in proxy.shape)
    while len(extents) > 3 and extents[-1] == 1:
        extents = extents[:-1]
    if not 2 <= len(extents) <= 4 or min(extents) < 1:
        shape = " x ".join(map(str, extents))
        raise VolumeError(
            path, f"has {len(extents)} dimensions ({shape}); a scan has 3, or 4 with one volume a protocol"
        )
    if proxy.dtype.kind == "c":
        raise VolumeError(path, "has complex voxels; store the magnitude")
    columns, rows, planes, protocols = (*extents, 1, 1)[:4]
    voxels = _Voxels(
        path=Path(image.file_map["image" if "image" in image.file_map else "header"].filename),
        offset=int(proxy.offset),
        dtype=proxy.dtype,
        shape=(columns, rows, planes),
        protocols=protocols,
        is_4d=len(extents) == 4,
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
    )
    needed = voxels.offset + columns * rows * planes * protocols * voxels.dtype.itemsize
    if not voxels.is_compressed and voxels.path.stat().st_size < needed:
        raise voxels.cut_short()
    return voxels


class _NiftiSource:
    """Slices of one protocol.

    Where the file is not compressed and its last axis is the stack's, each slice is read from its place. Otherwise
    the file is read once, as stored, and shared by its protocols.
    """

    def __init__(self, voxels: _Voxels, protocol: int, geometry: Transversal, held: Held[NDArray[Any]]) -> None:
        self._voxels = voxels
        self._protocol = protocol
        self._geometry = geometry
        self._held = held
        self._in_place = not voxels.is_compressed and geometry.stack_axis == 2

    def read(self, index: int) -> Slice:
        """Reads a slice."""
        try:
            if self._in_place:
                plane = self._voxels.read_plane(self._geometry.plane_index(index), self._protocol)
                stored = self._geometry.plane(plane)
            else:
                block = self._held.get(self._protocol)[..., self._protocol]
                stored = self._geometry.slices(block)[index]
        except VolumeError as error:
            raise VolumeError(error.path, f"slice {index}: {error.reason}") from error
        return Slice(index, _pixels(stored), self._voxels.slope, self._voxels.intercept)

    def release(self) -> None:
        """Drops the file's voxels when all of its protocols have let go."""
        self._held.release(self._protocol)


def _pixels(stored: NDArray[Any]) -> NDArray[Any]:
    if stored.dtype.names:  # RGB and RGBA
        stored = luminance(np.stack([stored[channel] for channel in "RGB"], axis=-1))
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if stored.dtype not in ELEMENT_TYPES:
        stored = stored.astype(np.float64)
    return np.ascontiguousarray(stored)
