"""What tells apart the frames of one series that lie at one position: echoes, b-values, points in time, ..."""

from collections.abc import Mapping

from pydicom.tag import BaseTag, Tag

from slicevote_volumes.dicom_elements import Elements, items, raw_text, tag_of, text

# What may tell apart frames of one series at one position, in the order in which it is tried: label and where it
# stands, in the header itself and, for enhanced objects, in the functional groups.
TRAITS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "echo_time": (("EchoTime",), ("MREchoSequence", "EffectiveEchoTime")),
    "echo_number": (("EchoNumbers",),),
    "temporal_position": (("TemporalPositionIdentifier",), ("FrameContentSequence", "TemporalPositionIndex")),
    "b_value": (("DiffusionBValue",), ("MRDiffusionSequence", "DiffusionBValue")),
    "gradient_direction": (
        ("DiffusionGradientOrientation",),
        ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
    ),
    "inversion_time": (("InversionTime",),),
    "trigger_time": (("TriggerTime",), ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")),
    "acquisition_number": (("AcquisitionNumber",), ("FrameContentSequence", "FrameAcquisitionNumber")),
    "image_type": (
        ("ImageType",),
        ("MRImageFrameTypeSequence", "FrameType"),
        ("CTImageFrameTypeSequence", "FrameType"),
    ),
    "convolution_kernel": (("ConvolutionKernel",), ("CTReconstructionSequence", "ConvolutionKernel")),
    "stack": (("FrameContentSequence", "StackID"),),
}
# Scanners that write the b-value where only they look: private creator's tag, its value, the element.
PRIVATE_B_VALUES = (
    (Tag(0x0019, 0x0010), "SIEMENS MR HEADER", Tag(0x0019, 0x100C)),
    (Tag(0x0043, 0x0010), "GEMS_PARM_01", Tag(0x0043, 0x1039)),
)

# The elements outside of functional groups that `traits_of` reads.
TAGS: list[BaseTag] = [tag_of(path[0]) for paths in TRAITS.values() for path in paths if len(path) == 1]
TAGS += [tag for creator, _, element in PRIVATE_B_VALUES for tag in (creator, element)]


def traits_of(groups: list[Elements]) -> Mapping[str, str]:
    """Reads the traits of a frame: label and value of those that it has.

    Args:
        groups: Where to look, the header of the file last; the first that has a value gives it.
    """
    traits: dict[str, str] = {}
    for label, places in TRAITS.items():
        for place in places:
            owners = groups
            for sequence in place[:-1]:
                owners = [item for owner in owners for item in items(owner, sequence)]
            value = next((found for owner in owners if (found := text(owner, place[-1]))), "")
            if value:
                traits.setdefault(label, value)
    for creator, name, element in PRIVATE_B_VALUES:
        header = groups[-1]
        if "b_value" not in traits and element in header and raw_text(header, creator) == name:
            traits["b_value"] = raw_text(header, element).split("/")[0]
    return traits
