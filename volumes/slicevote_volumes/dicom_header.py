"""What the header of a DICOM file says of its image: one `ImageFile`, one `Frame` for every frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from slicevote_volumes.dicom_elements import (
    Elements,
    element_name,
    elements_of,
    integer,
    items,
    numbers,
    raw_text,
    tag_of,
    text,
)
from slicevote_volumes.dicom_traits import TAGS as TRAIT_TAGS
from slicevote_volumes.dicom_traits import traits_of
from slicevote_volumes.geometry import DEFAULT_ORIENTATION, plane_normal
from slicevote_volumes.model import VolumeError
from slicevote_volumes.quiet import DamagedError, NotAScan, guarded, silence_pydicom

HEAD_BYTES = 64 * 1024  # nearly every header of a single-frame image fits
MAX_EXTENT = 8192  # rows or columns; what the contract allows a slice
MAX_FRAMES = 20_000
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}

# Objects that may hold pixels or refer to images but are not scans (DICOM PS3.3 C.7.3.1.1.1).
# fmt: off
NOT_SCANS = frozenset((
    "SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTIMAGE", "PR", "KO", "SR", "REG",
    "FID", "DOC", "PLAN", "RWV", "ECG", "HD", "EPS", "AU", "TEXTUREMAP", "M3D",
    "STAIN", "ANN",
))
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID",
    "Modality", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)
# fmt: on
silence_pydicom()
_TAGS: list[BaseTag | int] = [*map(tag_of, _KEYWORDS), *TRAIT_TAGS]


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


def read_frames(path: Path) -> list[Frame]:
    """Reads the header of a DICOM file.

    Raises:
        NotAScan: There is no scan in it.
        VolumeError: It should be a scan, and is damaged.
    """
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
            if not _looks_like_dicom(head):
                raise NotAScan
            whole = len(head) < HEAD_BYTES
            try:
                return parse_frames(BytesIO(head), path, is_whole=whole)
            except _CutShort:
                file.seek(0)
                with path.open("rb") as buffered:
                    return parse_frames(buffered, path)
    except OSError as error:
        raise VolumeError(path, f"cannot be read ({error.strerror or 'input/output error'})") from error


class _CutShort(Exception):
    """The header goes on behind the bytes at hand."""


def _looks_like_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    # Without preamble, as some archives keep them: begins with group 2 or 8 and a low element number.
    return len(head) > 132 and head[:2] in (b"\x02\x00", b"\x08\x00") and head[3] == 0 and head[2] <= 0x18


def is_deflated(stream: BinaryIO) -> bool:
    """Tells by its file meta information whether a file's data set is deflated; leaves the stream at its beginning."""
    start = 132 if stream.read(132)[128:] == b"DICM" else 0
    stream.seek(start)
    try:
        with guarded():
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group > 2)
            return raw_text(elements_of(meta), tag_of("TransferSyntaxUID")) == DeflatedExplicitVRLittleEndian
    except DamagedError:
        return False
    finally:
        stream.seek(0)


def parse_frames(stream: BinaryIO, path: Path | None, *, is_whole: bool = True) -> list[Frame]:
    """Parses a header.

    Args:
        stream: The file, from its beginning.
        path: Its name, for errors.
        is_whole: False where the stream holds no more than the beginning.

    Raises:
        NotAScan: There is no scan in it.
        VolumeError: It should be a scan, and is damaged.
    """
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in PIXEL_KEYWORDS:
            return False
        found.append((int(tag), vr, length))
        return True

    try:
        with guarded():
            header = read_partial(stream, at_pixels, force=True, specific_tags=_TAGS)
            if found or is_whole:
                return _frames(header, found[0] if found else None, stream, path)
    except DamagedError as error:
        if not is_whole:
            raise _CutShort from None
        raise VolumeError(path, f"the DICOM header is damaged ({error})") from None
    raise _CutShort


def _frames(
    dataset: FileDataset, pixels: tuple[int, str | None, int] | None, stream: BinaryIO, path: Path | None
) -> list[Frame]:
    header = elements_of(dataset)
    sop_class = UID(text(header, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    modality = text(header, "Modality").upper()
    if modality in NOT_SCANS:
        raise NotAScan
    try:
        rows, columns = integer(header, "Rows", 0), integer(header, "Columns", 0)
        if pixels is None:
            if rows or columns or "Image Storage" in sop_class.name:
                raise VolumeError(path, "has no pixel data")
            raise NotAScan
        if not (0 < rows <= MAX_EXTENT and 0 < columns <= MAX_EXTENT):
            raise VolumeError(path, f"has {rows} rows and {columns} columns; 1 to {MAX_EXTENT} are possible")
        count = integer(header, "NumberOfFrames", 1) or 1
        if not 0 < count <= MAX_FRAMES:
            raise VolumeError(path, f"has {count} frames; 1 to {MAX_FRAMES} are possible")
        layout = _layout(dataset, header, pixels, stream, rows, columns, count)
        image = ImageFile(
            path=path,
            layout=layout,
            sop_instance_uid=text(header, "SOPInstanceUID"),
            series_instance_uid=text(header, "SeriesInstanceUID"),
            study_instance_uid=text(header, "StudyInstanceUID"),
            patient_id=_patient_id(dataset),
            modality=modality[:16],
            body_part=text(header, "BodyPartExamined").lower(),
            instance_number=integer(header, "InstanceNumber", 0),
        )
        return _frames_of(header, image)
    except ValueError as error:
        raise VolumeError(path, str(error)) from None


def _layout(
    dataset: FileDataset,
    header: Elements,
    pixels: tuple[int, str | None, int],
    stream: BinaryIO,
    rows: int,
    columns: int,
    frames: int,
) -> PixelLayout:
    tag, vr, length = pixels
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    implicit, little = dataset.original_encoding
    if not syntax:
        syntax = ImplicitVRLittleEndian if implicit else UID("1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2")
    # pydicom has gone back to the beginning of the element: tag and length, or tag, VR, two bytes and length.
    offset = -1 if syntax == DeflatedExplicitVRLittleEndian else stream.tell() + (8 if implicit else 12)
    bits_allocated = integer(header, "BitsAllocated", 16)
    return PixelLayout(
        transfer_syntax=syntax,
        keyword=PIXEL_KEYWORDS[tag],
        vr=vr or "OW",
        offset=offset,
        length=length,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=integer(header, "SamplesPerPixel", 1),
        planar_configuration=integer(header, "PlanarConfiguration", 0),
        photometric=text(header, "PhotometricInterpretation") or "MONOCHROME2",
        bits_allocated=bits_allocated,
        bits_stored=integer(header, "BitsStored", bits_allocated),
        is_signed=integer(header, "PixelRepresentation", 0) == 1,
        has_modality_lut=tag_of("ModalityLUTSequence") in header,
    )


def _frames_of(header: Elements, image: ImageFile) -> list[Frame]:
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    count = image.layout.frames
    if per_frame:
        if len(per_frame) < count:
            raise ValueError(f"has {count} frames and functional groups for {len(per_frame)}")
        shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        return [_frame(image, index, [groups, *shared, header]) for index, groups in enumerate(per_frame[:count])]
    first = _frame(image, 0, [header])
    if count == 1:
        return [first]
    # Frames without functional groups follow one another at equal distances.
    origin = first.position or (0.0, 0.0, 0.0)
    step = first.plane_spacing * plane_normal(first.orientation or DEFAULT_ORIENTATION)
    return [
        Frame(
            image,
            index,
            tuple(float(a + index * b) for a, b in zip(origin, step, strict=True)),
            first.orientation,
            first.pixel_spacing,
            first.plane_spacing,
            first.rescale_slope,
            first.rescale_intercept,
            first.traits,
        )
        for index in range(count)
    ]


def _frame(image: ImageFile, index: int, groups: list[Elements]) -> Frame:
    """Reads one frame; the first of the groups that has a value gives it."""
    position = _find(groups, ("PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _find(groups, ("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _find(groups, ("PixelMeasuresSequence", "PixelSpacing"), 2) or _find(
        groups, ("", "ImagerPixelSpacing"), 2
    )
    between = _find(groups, ("PixelMeasuresSequence", "SpacingBetweenSlices"), 1)
    thickness = _find(groups, ("PixelMeasuresSequence", "SliceThickness"), 1)
    slope = _find(groups, ("PixelValueTransformationSequence", "RescaleSlope"), 1)
    intercept = _find(groups, ("PixelValueTransformationSequence", "RescaleIntercept"), 1)
    rescale = (slope[0] if slope else 1.0, intercept[0] if intercept else 0.0)
    if not rescale[0]:  # would make all values equal: written by software that meant "none"
        rescale = (1.0, 0.0)
    distances = [abs(found[0]) for found in (between, thickness) if found and found[0]]
    return Frame(
        file=image,
        index=index,
        position=position,
        orientation=orientation,
        pixel_spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else (1.0, 1.0),
        plane_spacing=distances[0] if distances else 1.0,
        rescale_slope=rescale[0],
        rescale_intercept=rescale[1],
        traits=traits_of(groups),
    )


def _find(groups: list[Elements], where: tuple[str, str], count: int) -> tuple[float, ...] | None:
    """Finds `count` numbers in a functional group or, for objects that have none, in the header itself."""
    sequence, keyword = where
    for group in groups:
        for owner in [*items(group, sequence), group] if sequence else [group]:
            found = numbers(owner, keyword)
            if len(found) >= count:
                return found[:count]
            if found:
                raise ValueError(f"{element_name(keyword)} has {len(found)} values instead of {count}")
    return None


def _patient_id(dataset: FileDataset) -> str:
    plain = text(elements_of(dataset), "PatientID")
    return plain if plain.isascii() else str(dataset.PatientID).strip()
