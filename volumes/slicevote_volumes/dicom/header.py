"""The header of a DICOM instance: where its pixels are, and what it says about every frame."""

from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from slicevote_volumes.dicom.elements import (
    ElementError,
    Elements,
    elements_of,
    integer,
    numbers,
    raw_text,
    tag_of,
    text,
)
from slicevote_volumes.dicom.frames import frames_of
from slicevote_volumes.dicom.image import Frame, Image, PixelLayout
from slicevote_volumes.dicom.instance_sources import Instance
from slicevote_volumes.dicom.object_types import why_not_a_scan
from slicevote_volumes.dicom.split_attributes import TAGS as SPLIT_TAGS
from slicevote_volumes.errors import DamagedError, NotAScan, guarded, os_reason
from slicevote_volumes.modality import normalise_modality

MAX_EXTENT = 8192  # rows or columns; what the contract allows a slice
MAX_FRAMES = 20_000
PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
PREFIX_AT, PREFIX = 128, b"DICM"  # DICOM PS3.10 7.1
# fmt: off
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "SeriesNumber",
    "Modality", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)
# fmt: on
_TAGS: list[BaseTag | int] = [*map(tag_of, _KEYWORDS), *SPLIT_TAGS]
_DAMAGED = "the DICOM header is damaged"


def read_frames(instance: Instance) -> list[Frame]:
    """Read the header of an instance and return its frames.

    Raises:
        NotAScan: It holds no scan.
        VolumeError: It should be a scan, and is damaged.
    """
    try:
        with instance.open() as stream:
            head = stream.read(PREFIX_AT + len(PREFIX) + 1)
            if not _looks_like_dicom(head):
                raise NotAScan("is not DICOM")
            stream.seek(0)
            return _parse(stream, instance)
    except OSError as error:
        raise instance.error(os_reason(error)) from error
    except DamagedError as error:
        if not _has_prefix(head):  # only looked like it
            raise NotAScan("is not DICOM") from None
        raise instance.error(str(error)) from None


def is_deflated(stream: BinaryIO) -> bool:
    """Return whether the file meta information says that the data set is deflated; the stream is at its beginning."""
    stream.seek(PREFIX_AT + len(PREFIX) if _has_prefix(stream.read(PREFIX_AT + len(PREFIX))) else 0)
    try:
        with guarded(_DAMAGED):
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group > 2)
        return raw_text(elements_of(meta), tag_of("TransferSyntaxUID")) == DeflatedExplicitVRLittleEndian
    except DamagedError:
        return False


def _has_prefix(head: bytes) -> bool:
    return head[PREFIX_AT : PREFIX_AT + len(PREFIX)] == PREFIX


def _looks_like_dicom(head: bytes) -> bool:
    if _has_prefix(head):
        return True
    # Without preamble, as some archives keep them: begins with group 2 or 8 and a low element number.
    return len(head) > 132 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0 and head[2] <= 0x18


@dataclass(frozen=True)
class _Header:
    """The elements of an instance up to its pixels, and where the stream has met them."""

    dataset: FileDataset
    elements: Elements
    transfer_syntax: UID
    pixels: tuple[int, str | None, int] | None  # tag, VR and length of the element
    stream_at: int


def _parse(stream: BinaryIO, instance: Instance) -> list[Frame]:
    header = _header(stream)
    elements = header.elements
    modality = _modality(elements)
    if why := why_not_a_scan(modality):
        raise NotAScan(f"is {why}")
    rows, columns = integer(elements, "Rows", 0), integer(elements, "Columns", 0)
    if header.pixels is None:
        meta = elements_of(header.dataset.file_meta)
        sop_class = UID(text(elements, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"))
        if rows or columns or "Image Storage" in sop_class.name:
            raise DamagedError("has no pixel data")
        raise NotAScan("holds no image")
    if not (0 < rows <= MAX_EXTENT and 0 < columns <= MAX_EXTENT):
        raise DamagedError(f"has {rows} rows and {columns} columns; 1 to {MAX_EXTENT} are possible")
    count = integer(elements, "NumberOfFrames", 1) or 1
    if not 0 < count <= MAX_FRAMES:
        raise DamagedError(f"has {count} frames; 1 to {MAX_FRAMES} are possible")
    image = Image(
        instance=instance,
        layout=_layout(header, header.pixels, rows, columns, count),
        sop_instance_uid=text(elements, "SOPInstanceUID"),
        series_instance_uid=text(elements, "SeriesInstanceUID"),
        study_instance_uid=text(elements, "StudyInstanceUID"),
        patient_id=_patient_id(header),
        modality=modality,
        body_part=text(elements, "BodyPartExamined").lower(),
        instance_number=integer(elements, "InstanceNumber", 0),
        series_number=_series_number(elements),
    )
    return frames_of(elements, image)


def _header(stream: BinaryIO) -> _Header:
    met: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in PIXEL_KEYWORDS:
            return False
        met.append((int(tag), vr, length))
        return True

    with guarded(_DAMAGED):
        dataset = read_partial(stream, at_pixels, force=True, specific_tags=_TAGS)
    syntax = UID(text(elements_of(dataset.file_meta), "TransferSyntaxUID"))
    if not syntax:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else explicit
    return _Header(dataset, elements_of(dataset), syntax, met[0] if met else None, stream.tell())


def _layout(header: _Header, pixels: tuple[int, str | None, int], rows: int, columns: int, frames: int) -> PixelLayout:
    tag, vr, length = pixels
    elements = header.elements
    # pydicom has gone back to the beginning of the element: tag and length, or tag, VR, two bytes and length.
    implicit, _ = header.dataset.original_encoding
    is_deflated = header.transfer_syntax == DeflatedExplicitVRLittleEndian
    bits_allocated = integer(elements, "BitsAllocated", 16)
    return PixelLayout(
        transfer_syntax=header.transfer_syntax,
        keyword=PIXEL_KEYWORDS[tag],
        vr=vr or "OW",
        offset=-1 if is_deflated else header.stream_at + (8 if implicit else 12),
        length=length,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=integer(elements, "SamplesPerPixel", 1),
        planar_configuration=integer(elements, "PlanarConfiguration", 0),
        photometric=text(elements, "PhotometricInterpretation") or "MONOCHROME2",
        bits_allocated=bits_allocated,
        bits_stored=min(integer(elements, "BitsStored", bits_allocated), bits_allocated),
        is_signed=integer(elements, "PixelRepresentation", 0) == 1,
        has_modality_lut=tag_of("ModalityLUTSequence") in elements,
    )


def _modality(elements: Elements) -> str:
    """Return the normalised modality; empty if it is not a code, which makes it unknown and no reason to refuse."""
    try:
        return normalise_modality(text(elements, "Modality"))
    except ValueError:
        return ""


def _series_number(elements: Elements) -> int | None:
    """Return the number of the series; None if it has none, or one that is not a number: it only helps to choose."""
    try:
        return next(map(int, numbers(elements, "SeriesNumber")), None)
    except ElementError:
        return None


def _patient_id(header: _Header) -> str:
    plain = text(header.elements, "PatientID")
    if plain.isascii():
        return plain
    with guarded(_DAMAGED):
        return str(header.dataset.PatientID).strip()
