"""NIfTI files (.nii, .nii.gz, pairs of .hdr and .img): one volume, or one for every protocol of a 4-D file."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.errors import DamagedError, VolumeError, guarded, os_reason
from slicevote_volumes.geometry import Transversal, lps_from_ras, transversal
from slicevote_volumes.identity import sha256_of, volume_id
from slicevote_volumes.shared_pixels import SharedPixels
from slicevote_volumes.volume import ELEMENT_TYPES, Slice, Volume, luminance

SUFFIXES = (".nii", ".nii.gz", ".img", ".img.gz", ".hdr", ".hdr.gz")
_CUT_SHORT = "is cut short: it ends before the last voxel that its header announces"
UNITS_MM = {1: 1000.0, 3: 0.001}  # xyzt_units, its lower three bits: metre, micrometre; all else is mm


def is_nifti_name(path: Path) -> bool:
    """Return whether the name of a file is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, modality: str = "") -> list[Volume]:
    """Read the header of a NIfTI file and return its volumes.

    Args:
        path: The file; of a pair either one.
        modality: DICOM modality code, which a NIfTI file does not give.

    Raises:
        VolumeError: The file is damaged, or holds no scan.
    """
    try:
        path.stat()  # nibabel's own error does not say why
        with guarded("is not NIfTI although its name says so, or its header is damaged"):
            image: Any = nibabel.load(path)
        voxels = _voxels(path, image)
        digest = sha256_of(sorted({Path(str(part.filename)) for part in image.file_map.values()}))
        unit_mm = UNITS_MM.get(int(image.header["xyzt_units"]) % 8, 1.0)
        geometry = transversal(lps_from_ras(image.affine, unit_mm), voxels.shape)
        geometry.check_extent()
    except DamagedError as error:
        raise VolumeError(path, str(error)) from None
    except OSError as error:
        raise VolumeError(path, os_reason(error)) from error

    pixels = SharedPixels(voxels.read_all, voxels.protocols)
    names = [str(protocol) for protocol in range(voxels.protocols)] if voxels.is_4d else [""]
    return [
        Volume(
            id=volume_id("nifti", digest, {"protocol": name} if name else {}),
            positions_mm=geometry.positions_mm,
            shape=geometry.shape[1:],
            slice_source=_NiftiSource(voxels, protocol, geometry, pixels),
            source=f"{path}:{name}" if name else str(path),
            paths=(path,),
            modality=modality,
            labels={key: value for key, value in (("modality", modality), ("protocol", name)) if value},
            pixel_spacing_mm=geometry.pixel_spacing_mm(),
            split={"protocol": name} if name else {},
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
        """Read voxels as stored.

        Raises:
            DamagedError: The file is damaged, or ends before them.
            OSError: The file cannot be read.
        """
        offset, size = self.offset + first * self.dtype.itemsize, count * self.dtype.itemsize
        with self._open() as file, guarded("cannot be decompressed"):
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise DamagedError(_CUT_SHORT)
        return np.frombuffer(data, self.dtype)

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, gzip.open(self.path)) if self.is_compressed else self.path.open("rb")

    def read_all(self) -> NDArray[Any]:
        """Read the whole file, [*shape, protocols]."""
        return self.read(0, int(np.prod(self.shape)) * self.protocols).reshape(*self.shape, self.protocols, order="F")

    def read_plane(self, index: int, protocol: int) -> NDArray[Any]:
        """Read one plane across the last axis, [shape[0], shape[1]]."""
        columns, rows, planes = self.shape
        first = (protocol * planes + index) * rows * columns
        return self.read(first, rows * columns).reshape(columns, rows, order="F")


def _voxels(path: Path, image: Any) -> _Voxels:
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 and single files derive from it
        kind = type(image).__name__
        raise DamagedError(f"is {kind}, which does not say how it is oriented in space; convert it to NIfTI")
    proxy: Any = image.dataobj
    extents = tuple(int(extent) for extent in proxy.shape)
    while len(extents) > 3 and extents[-1] == 1:
        extents = extents[:-1]
    if not 2 <= len(extents) <= 4 or min(extents) < 1:
        shape = " x ".join(map(str, extents))
        raise DamagedError(
            f"has {len(extents)} dimensions ({shape}); a scan has 3, or 4 with one volume for every protocol"
        )
    if proxy.dtype.kind == "c":
        raise DamagedError("has complex voxels; store the magnitude")
    columns, rows, planes, protocols = (*extents, 1, 1)[:4]
    voxels = _Voxels(
        path=Path(str(image.file_map["image" if "image" in image.file_map else "header"].filename)),
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
        raise DamagedError(_CUT_SHORT)
    return voxels


class _NiftiSource:
    """Slices of one protocol.

    If the file is not compressed and its last axis is the stack's, each slice is read from its place. Otherwise the
    file is read once, as stored, and shared by its protocols.
    """

    def __init__(
        self, voxels: _Voxels, protocol: int, geometry: Transversal, pixels: SharedPixels[NDArray[Any]]
    ) -> None:
        self._voxels = voxels
        self._protocol = protocol
        self._geometry = geometry
        self._pixels = pixels
        self._in_place = not voxels.is_compressed and geometry.stack_axis == 2

    def read(self, index: int) -> Slice:
        """Read a slice."""
        try:
            if self._in_place:
                plane = self._voxels.read_plane(self._geometry.plane_index(index), self._protocol)
                stored = self._geometry.plane(plane)
            else:
                block = self._pixels.get(self._protocol)[..., self._protocol]
                stored = self._geometry.slices(block)[index]
        except (OSError, DamagedError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else str(error)
            raise VolumeError(
                self._voxels.path, f"slice {index}: {reason}; the file is damaged or has changed"
            ) from None
        return Slice(index, _pixels(stored), self._voxels.slope, self._voxels.intercept)

    def release(self) -> None:
        """Drop the file's voxels when all of its protocols have been released."""
        self._pixels.release(self._protocol)


def _pixels(stored: NDArray[Any]) -> NDArray[Any]:
    if stored.dtype.names:  # RGB and RGBA
        stored = luminance(np.stack([stored[channel] for channel in "RGB"], axis=-1))
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if stored.dtype not in ELEMENT_TYPES:
        stored = stored.astype(np.float64)
    return np.ascontiguousarray(stored)
