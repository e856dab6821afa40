"""A DICOM image as its header describes it: the instance, the layout of its pixels, and its frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydicom.uid import UID

from slicevote_volumes.dicom.instance_sources import Instance

UNDEFINED_LENGTH = 0xFFFFFFFF
DEFAULT_SPACING_MM = 1.0  # between rows, columns or planes if the header does not give it


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """Where the pixels of an instance begin and how they are encoded (DICOM PS3.3 C.7.6.3).

    Attributes:
        transfer_syntax: How the pixels are encoded.
        keyword: Which of the three pixel data elements holds them.
        vr: Value representation of that element.
        offset: Where its value begins, in bytes from the start of the instance.
        length: Length of the value in bytes; `UNDEFINED_LENGTH` if it is encapsulated.
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


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """What all frames of an instance have in common; the attributes are named as in DICOM."""

    instance: Instance
    layout: PixelLayout
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str = field(repr=False)
    modality: str
    body_part: str
    instance_number: int
    series_number: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of an image.

    Attributes:
        image: The image that it belongs to.
        index: Which frame of the image, from 0.
        position: ImagePositionPatient in mm; None if it is not given.
        orientation: ImageOrientationPatient; None if it is not given.
        pixel_spacing: Distance between rows and between columns in mm; None if it is not given, or not positive.
        plane_spacing: Distance between planes in mm; None if it is not given, or zero.
        split_values: What may tell it apart from other frames at the same position: label and value of the
            `split.SPLIT_ATTRIBUTES` that it has.
    """

    image: Image
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    plane_spacing: float | None
    rescale_slope: float
    rescale_intercept: float
    split_values: Mapping[str, str]
