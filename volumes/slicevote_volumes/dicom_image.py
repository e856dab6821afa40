"""A DICOM image as far as its header tells: the file, how its pixels are stored, and its frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import UID

UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Where the pixels of a file begin and how they are encoded (DICOM PS3.3 C.7.6.3).

    Attributes:
        transfer_syntax: How the pixels are encoded.
        keyword: Which of the three pixel data elements.
        vr: Its VR.
        offset: Where its value begins, in bytes from the start of the file.
        length: Length of the value in bytes; `UNDEFINED_LENGTH` where it is encapsulated.
        has_modality_lut: A Modality LUT Sequence takes the place of slope and intercept.
    """

    transfer_syntax: UID
    keyword: str
    vr: str
    offset: int
    length: int
    rows: int
    columns: int
    frames: int
    samples: int
    planar_configuration: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    has_modality_lut: bool


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What holds for all frames of a file. See DICOM for what the attributes mean."""

    path: Path | None
    layout: PixelLayout
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str = field(repr=False)
    modality: str
    body_part: str
    instance_number: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of an image.

    Attributes:
        file: Where it is.
        index: Which frame of the file, from 0.
        position: ImagePositionPatient in mm; None where the file does not say.
        orientation: ImageOrientationPatient; None where the file does not say.
        pixel_spacing: Distance between rows and between columns, mm.
        plane_spacing: Distance between planes in mm, as far as the header knows.
        traits: What may tell it apart from other frames at the same place; see dicom_traits.
    """

    file: ImageFile
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float]
    plane_spacing: float
    rescale_slope: float
    rescale_intercept: float
    traits: Mapping[str, str]
