"""Geometry, rescale and traits of every frame of an image: its header, or its functional groups (PS3.3 C.7.6.16)."""

from dataclasses import replace

import numpy as np

from slicevote_volumes.dicom_elements import ElementError, Elements, element_name, items, numbers
from slicevote_volumes.dicom_image import Frame, ImageFile
from slicevote_volumes.dicom_traits import traits_of
from slicevote_volumes.geometry import DEFAULT_ORIENTATION, plane_normal
from slicevote_volumes.model import VolumeError


def frames_of(header: Elements, image: ImageFile) -> list[Frame]:
    """Reads the frames of an image.

    Raises:
        ElementError: An element has a value that it cannot have.
        GeometryError: Its orientation is none.
        VolumeError: There are fewer functional groups than frames.
    """
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    count = image.layout.frames
    if per_frame:
        if len(per_frame) < count:
            raise VolumeError(image.path, f"has {count} frames and functional groups for {len(per_frame)}")
        shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        return [_frame(image, index, [groups, *shared, header]) for index, groups in enumerate(per_frame[:count])]
    first = _frame(image, 0, [header])
    if count == 1:
        return [first]
    # Frames without functional groups follow one another at equal distances.
    origin = first.position or (0.0, 0.0, 0.0)
    step = first.plane_spacing * plane_normal(first.orientation or DEFAULT_ORIENTATION)
    positions = np.asarray(origin) + np.arange(count)[:, np.newaxis] * step
    return [replace(first, index=index, position=tuple(position.tolist())) for index, position in enumerate(positions)]


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
                raise ElementError(f"{element_name(keyword)} has {len(found)} values instead of {count}")
    return None
