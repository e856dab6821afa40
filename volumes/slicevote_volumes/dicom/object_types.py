"""Which DICOM objects are scans, and what the others are."""

from collections.abc import Mapping

# Objects that may hold pixels or refer to images but are no scans: modality (DICOM PS3.3 C.7.3.1.1.1) and what it is.
NOT_SCANS: Mapping[str, str] = {
    "ANN": "an annotation",
    "AU": "audio",
    "DOC": "a document",
    "ECG": "an electrocardiogram",
    "EPS": "an electrophysiology recording",
    "FID": "a set of fiducials",
    "HD": "a haemodynamic waveform",
    "KO": "a key object selection",
    "M3D": "a model for manufacturing",
    "PLAN": "a plan",
    "PR": "a presentation state",
    "REG": "a registration",
    "RTDOSE": "a radiotherapy dose",
    "RTIMAGE": "a radiotherapy image",
    "RTPLAN": "a radiotherapy plan",
    "RTRECORD": "a radiotherapy treatment record",
    "RTSTRUCT": "a radiotherapy structure set",
    "RWV": "a real world value map",
    "SEG": "a segmentation",
    "SR": "a structured report",
    "STAIN": "a staining protocol",
    "TEXTUREMAP": "a texture map",
}


def why_not_a_scan(modality: str) -> str:
    """Return what an object is if it is not a scan ("a segmentation"); empty if it may be one.

    Args:
        modality: Its modality, normalised.
    """
    return NOT_SCANS.get(modality, "")
