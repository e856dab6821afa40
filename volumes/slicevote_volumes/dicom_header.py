"""Reads the header of a DICOM file: where its pixels are and what it says of every frame."""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from slicevote_volumes.dicom_elements import ElementError, Elements, elements_of, integer, raw_text, tag_of, text
from slicevote_volumes.dicom_frames import frames_of
from slicevote_volumes.dicom_image import Frame, ImageFile, PixelLayout
from slicevote_volumes.dicom_traits import TAGS as TRAIT_TAGS
from slicevote_volumes.geometry import GeometryError
from slicevote_volumes.model import VolumeError
from slicevote_volumes.quiet import DamagedError, NotAScan, guarded, os_reason, silence_pydicom

HEAD_BYTES = 64 * 1024  # nearly every header of a single-frame image fits
MAX_EXTENT = 8192  # rows or columns; what the contract allows a slice
MAX_FRAMES = 20_000
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
        try:
            return parse_frames(BytesIO(head), path, is_whole=len(head) < HEAD_BYTES)
        except _CutShort:
            with path.open("rb") as file:
                return parse_frames(file, path)
    except OSError as error:
        raise VolumeError(path, os_reason(error)) from error
    except VolumeError:
        if head[128:132] != b"DICM":  # only looked like it
            raise NotAScan from None
        raise


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
            patient_id=_patient_id(dataset, header),
            modality=modality[:16],
            body_part=text(header, "BodyPartExamined").lower(),
            instance_number=integer(header, "InstanceNumber", 0),
        )
        return frames_of(header, image)
    except (ElementError, GeometryError) as error:
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
        bits_stored=min(integer(header, "BitsStored", bits_allocated), bits_allocated),
        is_signed=integer(header, "PixelRepresentation", 0) == 1,
        has_modality_lut=tag_of("ModalityLUTSequence") in header,
    )


def _patient_id(dataset: FileDataset, header: Elements) -> str:
    plain = text(header, "PatientID")
    return plain if plain.isascii() else str(dataset.PatientID).strip()
