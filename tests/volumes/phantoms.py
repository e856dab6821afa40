"""Phantoms: scans whose voxels are known, written in any orientation and encoding."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gdcm
import nibabel
import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from slicevote_volumes import Volume

# An acquisition: for the planes, rows and columns of a block, along which world axis they increase (0 to the left, 1 to
# posterior, 2 to superior) and whether with it or against it.
Axes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
AXIAL: Axes = ((2, 1), (1, 1), (0, 1))
FEET_LAST: Axes = ((2, -1), (1, 1), (0, 1))
ROWS_UP: Axes = ((2, 1), (1, -1), (0, 1))
PRONE: Axes = ((2, 1), (1, -1), (0, -1))
TRANSPOSED: Axes = ((2, 1), (0, 1), (1, 1))
SAGITTAL: Axes = ((0, 1), (2, -1), (1, 1))
SAGITTAL_FROM_LEFT: Axes = ((0, -1), (2, -1), (1, 1))
CORONAL: Axes = ((1, 1), (2, -1), (0, 1))
ACQUISITIONS = {
    "axial": AXIAL,
    "feet last": FEET_LAST,
    "rows up": ROWS_UP,
    "prone": PRONE,
    "transposed": TRANSPOSED,
    "sagittal": SAGITTAL,
    "sagittal from left": SAGITTAL_FROM_LEFT,
    "coronal": CORONAL,
}
ALL_AXES: list[Axes] = [
    tuple(zip(worlds, signs, strict=True))
    for worlds in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
PATIENT = "PATIENT-7731"


@dataclass(frozen=True, eq=False)
class Phantom:
    """Expected values [slice, row, column]; spacing and origin in x, y, z (LPS), mm."""

    values: np.ndarray
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5)
    origin: tuple[float, float, float] = (-31.0, -42.5, 103.25)

    @property
    def positions(self) -> np.ndarray:
        return self.origin[2] + self.spacing[2] * np.arange(len(self.values))


def phantom(shape: Sequence[int] = (6, 10, 8), dtype: str = "int16", seed: int = 0) -> Phantom:
    generator = np.random.default_rng(seed)
    low = 0 if np.dtype(dtype).kind == "u" else -100
    high = min(2000, np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else 2000
    return Phantom(generator.integers(low, high, size=tuple(shape)).astype(dtype))


def acquire(scan: Phantom, axes: Axes, turn: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the block [planes, rows, columns] of an acquisition along these axes, and its affine to LPS."""
    block = scan.values.transpose([2 - world for world, _ in axes])
    affine = np.eye(4)
    origin = np.array(scan.origin, float)
    for axis, (world, sign) in enumerate(axes):
        affine[:3, axis] = np.eye(3)[world] * sign * scan.spacing[world]
        if sign < 0:
            block = np.flip(block, axis)
            origin[world] += scan.spacing[world] * (block.shape[axis] - 1)
    affine[:3, 3] = origin
    if turn is not None:
        affine[:3] = turn @ affine[:3]
    return np.ascontiguousarray(block), affine


def turn(axis: int, degrees: float) -> np.ndarray:
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[a, a] = matrix[b, b] = cosine
    matrix[a, b], matrix[b, a] = -sine, sine
    return matrix


def number(value: float) -> str:
    return f"{value:.10f}"[:16]


def new_dataset(pixels: np.ndarray, *, modality: str = "MR", series: str = SERIES) -> FileDataset:
    """Return a data set with one plane of pixels and no geometry."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = STUDY, series, modality
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = PATIENT, "Doe^Jane", "19700101"
    ds.SeriesDescription, ds.BodyPartExamined = "for Dr Smith", "KNEE"
    set_pixels(ds, pixels)
    return ds


def set_pixels(ds: Dataset, pixels: np.ndarray, *, bits_stored: int = 0) -> None:
    rows, columns = pixels.shape[-3:-1] if pixels.shape[-1] == 3 else pixels.shape[-2:]
    ds.Rows, ds.Columns = rows, columns
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits_stored or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"


def place(ds: Dataset, affine: np.ndarray, plane: int) -> None:
    """Set the position and orientation of a plane of the block."""
    row_step, column_step = affine[:3, 1], affine[:3, 2]
    spacing = [float(np.linalg.norm(step)) for step in (row_step, column_step)]
    ds.ImageOrientationPatient = [number(v) for v in (*(column_step / spacing[1]), *(row_step / spacing[0]))]
    ds.ImagePositionPatient = [number(v) for v in affine[:3, 3] + plane * affine[:3, 0]]
    ds.PixelSpacing = [number(v) for v in spacing]
    ds.SliceThickness = number(float(np.linalg.norm(affine[:3, 0])))


def save(ds: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax == ExplicitVRBigEndian:
        size = max(ds.BitsAllocated // 8, 2)  # bytes are written in swapped pairs
        ds["PixelData"].VR = "OW"
        ds.PixelData = np.frombuffer(ds.PixelData, f"<u{size}").astype(f">u{size}").tobytes()
    plain = syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    ds.file_meta.TransferSyntaxUID = syntax if plain else ExplicitVRLittleEndian
    if syntax == ExplicitVRBigEndian:
        dcmwrite(path, ds, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        ds.save_as(path, enforce_file_format=True)
    if not plain:
        transcode(path, syntax)
    return path


def transcode(path: Path, syntax: str) -> None:
    """Compress a file in place, with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write_dicom(
    folder: Path,
    scan: Phantom,
    axes: Axes = AXIAL,
    *,
    rotation: np.ndarray | None = None,
    syntax: str = ExplicitVRLittleEndian,
    modality: str = "MR",
    series: str = SERIES,
    edit: Callable[[FileDataset, int], None] = lambda ds, plane: None,
    suffix: str = ".dcm",
) -> list[Path]:
    """Write a series, one file per plane; the order of the names is not that of the planes."""
    block, affine = acquire(scan, axes, rotation)
    paths = []
    for plane, pixels in enumerate(block):
        ds = new_dataset(pixels, modality=modality, series=series)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.{plane + 1}"
        ds.InstanceNumber = plane + 1
        place(ds, affine, plane)
        edit(ds, plane)
        paths.append(save(ds, folder / f"{(plane * 7) % 97:03d}{suffix}", syntax))
    return paths


def write_nifti(
    path: Path,
    scan: Phantom,
    axes: Axes = AXIAL,
    *,
    rotation: np.ndarray | None = None,
    kind: type = nibabel.Nifti1Image,
) -> Path:
    block, affine = acquire(scan, axes, rotation)
    image = kind(block, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def enhanced(scan: Phantom, *, edit: Callable[[Dataset, int], None] = lambda groups, plane: None) -> FileDataset:
    """Return an enhanced multi-frame MR object: geometry and rescale are in the functional groups."""
    block, affine = acquire(scan, FEET_LAST)
    ds = new_dataset(block[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    ds.NumberOfFrames = len(block)
    set_pixels(ds, block)
    measures, orientation = Dataset(), Dataset()
    place(measures, affine, 0)
    orientation.ImageOrientationPatient = measures.ImageOrientationPatient
    del measures.ImageOrientationPatient, measures.ImagePositionPatient
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    per_frame = []
    for plane in range(len(block)):
        position, rescale, groups = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [number(v) for v in affine[:3, 3] + plane * affine[:3, 0]]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-10", "US"
        groups.PlanePositionSequence = DicomSequence([position])
        groups.PixelValueTransformationSequence = DicomSequence([rescale])
        edit(groups, plane)
        per_frame.append(groups)
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(per_frame)
    return ds


def values(volume: Volume) -> np.ndarray:
    return np.stack([one.values() for one in volume.slices(range(len(volume)))])


def assert_is(volume: Volume, scan: Phantom, *, tolerance_mm: float = 1e-3) -> None:
    """Assert that the volume is the phantom, voxel for voxel and in the right place."""
    assert len(volume) == len(scan.values)
    assert volume.shape == scan.values.shape[1:]
    np.testing.assert_array_equal(values(volume), scan.values.astype(np.float32))
    np.testing.assert_allclose(volume.positions_mm, scan.positions, atol=tolerance_mm)
    for index in range(len(volume)):
        pixels = volume.slice(index).pixels
        assert pixels.flags.c_contiguous
        assert pixels.dtype.isnative
        assert pixels.shape == volume.shape
