"""The frames of an image, from its header or its functional groups (DICOM PS3.3 C.7.6.16)."""

from dataclasses import replace

import numpy as np

from slicevote_volumes.dicom.elements import ElementError, Elements, element_name, items, numbers, tag_of
from slicevote_volumes.dicom.image import DEFAULT_SPACING_MM, Frame, Image
from slicevote_volumes.dicom.split_attributes import split_values
from slicevote_volumes.errors import DamagedError
from slicevote_volumes.geometry import DEFAULT_ORIENTATION, plane_normal


def frames_of(header: Elements, image: Image) -> list[Frame]:
    """Return the frames of an image.

    Raises:
        DamagedError: An element has a value that it cannot have, or there are fewer functional groups than frames.
    """
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    count = image.layout.frames
    if per_frame:
        if len(per_frame) < count:
            raise DamagedError(f"has {count} frames and functional groups for {len(per_frame)}")
        shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        return [_frame(image, index, [groups, *shared, header]) for index, groups in enumerate(per_frame[:count])]
    first = _frame(image, 0, [header])
    if count == 1:
        return [first]
    # Frames without functional groups follow one another at equal distances.
    origin = first.position or (0.0, 0.0, 0.0)
    step = (first.plane_spacing or DEFAULT_SPACING_MM) * plane_normal(first.orientation or DEFAULT_ORIENTATION)
    positions = np.asarray(origin) + np.arange(count)[:, np.newaxis] * step
    return [replace(first, index=index, position=tuple(position.tolist())) for index, position in enumerate(positions)]


def _frame(image: Image, index: int, groups: list[Elements]) -> Frame:
    """Return one frame; of its groups, the first that has a value wins."""
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
        image=image,
        index=index,
        position=position,
        orientation=orientation,
        pixel_spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        plane_spacing=distances[0] if distances else None,
        rescale_slope=rescale[0],
        rescale_intercept=rescale[1],
        split_values=split_values(groups),
    )


def _find(groups: list[Elements], where: tuple[str, str], count: int) -> tuple[float, ...] | None:
    """Return `count` numbers from a functional group or, in objects without such groups, from the header itself."""
    sequence, keyword = where
    for group in groups:
        for owner in [*items(group, sequence), group] if sequence else [group]:
            found = numbers(owner, keyword)
            if len(found) >= count:
                return found[:count]
            if found:
                raise ElementError(f"{element_name(tag_of(keyword))} has {len(found)} values instead of {count}")
    return None
