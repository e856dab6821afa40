"""Synthetic DICOM series, written as a scanner writes them, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_series(folder: Path, *, slices: int = 100, side: int = 512, seed: int = 0) -> Path:
    """Write an axial CT series, one uncompressed file a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    series, study = generate_uid(), generate_uid()
    coarse = generator.uniform(-900, 600, size=(2, 16, 16))
    for index in range(slices):
        mixed = coarse[0] + (coarse[1] - coarse[0]) * index / slices
        picture = np.kron(mixed, np.ones((side // 16, side // 16))) + generator.normal(scale=20, size=(side, side))
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.Modality, data.PatientID, data.InstanceNumber = "CT", f"bench-{seed}", index + 1
        data.Rows = data.Columns = side
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 2.5
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0.0, 0.0, 2.5 * index]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = picture.astype("<i2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / f"{index:04}.dcm", enforce_file_format=True)
    return folder


def plain_read(folder: Path) -> list[np.ndarray]:
    """Read a series as a plain script would: all files with pydicom, sorted by position, rescaled."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    return [file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept) for file in files]
