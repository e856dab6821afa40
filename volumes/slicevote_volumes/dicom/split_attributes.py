"""The attributes that tell frames at one position apart (echoes, b-values, points in time), and the search for them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.tag import BaseTag, Tag

from slicevote_volumes.dicom.elements import Elements, items, raw_text, tag_of, text
from slicevote_volumes.dicom.image import Frame

POSITION_TOLERANCE_MM = 1e-3  # distance up to which planes are at one position


@dataclass(frozen=True)
class SplitAttribute:
    """An attribute that may tell frames apart.

    Attributes:
        label: Its label of a volume, and its name in volume ids.
        words: Its name for people.
        places: Where it stands, in order: an element of the header or, in enhanced objects, a path through the
            functional groups.
    """

    label: str
    words: str
    places: tuple[tuple[str, ...], ...]


SPLIT_ATTRIBUTES = (  # in the order in which they are tried
    SplitAttribute("echo_time", "echo time", (("EchoTime",), ("MREchoSequence", "EffectiveEchoTime"))),
    SplitAttribute("echo_number", "echo", (("EchoNumbers",),)),
    SplitAttribute(
        "temporal_position",
        "point in time",
        (("TemporalPositionIdentifier",), ("FrameContentSequence", "TemporalPositionIndex")),
    ),
    SplitAttribute("b_value", "b-value", (("DiffusionBValue",), ("MRDiffusionSequence", "DiffusionBValue"))),
    SplitAttribute(
        "gradient_direction",
        "gradient direction",
        (
            ("DiffusionGradientOrientation",),
            ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
        ),
    ),
    SplitAttribute("inversion_time", "inversion time", (("InversionTime",),)),
    SplitAttribute(
        "trigger_time",
        "trigger time",
        (("TriggerTime",), ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")),
    ),
    SplitAttribute(
        "acquisition_number",
        "acquisition",
        (("AcquisitionNumber",), ("FrameContentSequence", "FrameAcquisitionNumber")),
    ),
    SplitAttribute(
        "image_type",
        "image type",
        (("ImageType",), ("MRImageFrameTypeSequence", "FrameType"), ("CTImageFrameTypeSequence", "FrameType")),
    ),
    SplitAttribute(
        "convolution_kernel", "kernel", (("ConvolutionKernel",), ("CTReconstructionSequence", "ConvolutionKernel"))
    ),
    SplitAttribute("stack", "stack", (("FrameContentSequence", "StackID"),)),
)
WORDS: Mapping[str, str] = {attribute.label: attribute.words for attribute in SPLIT_ATTRIBUTES}
# Scanners that write the b-value where only they look: private creator's tag, its value, the element.
PRIVATE_B_VALUES = (
    (Tag(0x0019, 0x0010), "SIEMENS MR HEADER", Tag(0x0019, 0x100C)),
    (Tag(0x0043, 0x0010), "GEMS_PARM_01", Tag(0x0043, 0x1039)),
)

# The elements outside of functional groups that `split_values` reads.
TAGS: list[BaseTag] = [
    tag_of(place[0]) for attribute in SPLIT_ATTRIBUTES for place in attribute.places if len(place) == 1
]
TAGS += [tag for creator, _, element in PRIVATE_B_VALUES for tag in (creator, element)]


def split_values(groups: list[Elements]) -> Mapping[str, str]:
    """Return label and value of the split attributes that a frame has.

    Args:
        groups: Where to look, the header of the instance last; the first that has a value wins.

    Raises:
        DamagedError: An element has a value that it cannot have.
    """
    values: dict[str, str] = {}
    for attribute in SPLIT_ATTRIBUTES:
        for place in attribute.places:
            owners = groups
            for sequence in place[:-1]:
                owners = [item for owner in owners for item in items(owner, sequence)]
            value = next((found for owner in owners if (found := text(owner, place[-1]))), "")
            if value:
                values.setdefault(attribute.label, value)
    for creator, name, element in PRIVATE_B_VALUES:
        header = groups[-1]
        if "b_value" not in values and element in header and raw_text(header, creator) == name:
            values["b_value"] = raw_text(header, element).split("/")[0]
    return values


def repeats(places: Sequence[float]) -> bool:
    """Return whether two of these places along the planes' normal (mm) are one position."""
    return bool((np.diff(np.sort(places)) <= POSITION_TOLERANCE_MM).any())


def split_frames(frames: Sequence[Frame], places: Sequence[float]) -> list[tuple[dict[str, str], list[Frame]]] | None:
    """Split frames whose positions repeat by the attribute, or the few attributes, that tells them apart.

    Args:
        frames: The frames.
        places: Their places along the planes' normal in mm.

    Returns:
        Label and value of the attributes, and the frames that have them in common: one pair for every volume. None if
        nothing tells the frames apart.
    """
    place_of = {id(frame): place for frame, place in zip(frames, places, strict=True)}
    deepest = max(Counter(round(place / (10 * POSITION_TOLERANCE_MM)) for place in places).values())
    labels = [attribute.label for attribute in SPLIT_ATTRIBUTES]
    varying = [label for label in labels if len({frame.split_values.get(label, "") for frame in frames}) > 1]
    # One attribute, else the first two, three, ... together: echoes of several b-values.
    for chosen in [[label] for label in varying] + [varying[:count] for count in range(2, len(varying) + 1)]:
        groups: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[tuple(frame.split_values.get(label, "") for label in chosen)].append(frame)
        # An attribute that changes from slice to slice tells everything apart and means nothing.
        if len(groups) > 2 * deepest or any(repeats([place_of[id(one)] for one in group]) for group in groups.values()):
            continue
        return [(dict(zip(chosen, values, strict=True)), group) for values, group in groups.items()]
    return None
