"""Modality codes: the one place where they are normalised and checked (DICOM PS3.3, C.7.3.1.1.1)."""

from __future__ import annotations

import difflib
import re

CT = "CT"
"""Computed tomography: the one modality whose values are windowed in Hounsfield units."""

KNOWN_MODALITIES = frozenset(
    [
        "ANN",
        "AR",
        "ASMT",
        "AU",
        "BDUS",
        "BI",
        "BMD",
        "CFM",
        "CR",
        "CT",
        "CTPROTOCOL",
        "DG",
        "DMS",
        "DOC",
        "DX",
        "ECG",
        "EEG",
        "EMG",
        "EOG",
        "EPS",
        "ES",
        "FID",
        "GM",
        "HC",
        "HD",
        "IO",
        "IOL",
        "IVOCT",
        "IVUS",
        "KER",
        "KO",
        "LEN",
        "LS",
        "MG",
        "MR",
        "M3D",
        "NM",
        "OAM",
        "OCT",
        "OP",
        "OPM",
        "OPT",
        "OPTBSV",
        "OPTENF",
        "OPV",
        "OSS",
        "OT",
        "PA",
        "PLAN",
        "POS",
        "PR",
        "PT",
        "PX",
        "REG",
        "RESP",
        "RF",
        "RG",
        "RTDOSE",
        "RTIMAGE",
        "RTINTENT",
        "RTPLAN",
        "RTRAD",
        "RTRECORD",
        "RTSEGANN",
        "RTSTRUCT",
        "RWV",
        "SEG",
        "SM",
        "SMR",
        "SR",
        "SRF",
        "STAIN",
        "TEXTUREMAP",
        "TG",
        "US",
        "VA",
        "XA",
        "XAPROTOCOL",
        "XC",
    ]
)
"""Defined terms of the attribute Modality (0008,0060)."""

_USUAL_MISTAKES = {"MRI": "MR", "CAT": "CT", "PET": "PT", "SPECT": "NM", "MRT": "MR"}
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}")


def normalise_modality(text: str) -> str:
    """Return a modality code as DICOM writes it: upper case, without surrounding spaces; empty for an empty text.

    Raises:
        ValueError: It is no code string of up to 16 characters (DICOM value representation CS).
    """
    code = text.strip(" \0").upper()
    if not _CODE.fullmatch(code):
        raise ValueError("a modality is a DICOM code of up to 16 characters of [A-Z0-9_ ], such as CT or MR")
    return code


def check_modality(text: str) -> str:
    """Return the normalised code of a modality that a person typed.

    Raises:
        ValueError: DICOM defines no such modality; the message names what was probably meant.
    """
    code = normalise_modality(text)
    if not code or code in KNOWN_MODALITIES:
        return code
    meant = _USUAL_MISTAKES.get(code) or next(iter(difflib.get_close_matches(code, sorted(KNOWN_MODALITIES), 1)), None)
    hint = f"; did you mean {meant}?" if meant else "."
    raise ValueError(f"'{code}' is not a DICOM modality{hint} Usual ones are CT, MR and PT")
