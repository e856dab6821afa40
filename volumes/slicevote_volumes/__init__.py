"""What lies on a disk, as volumes: geometry and lazily decoded transversal slices.

Everything is turned to the nearest axial orientation: slice 0 is the most inferior one, rows run from anterior to
posterior, columns from the patient's right to the left. DICOM and NIfTI of the same scan give the same slices.

Importing this package turns off pydicom's warnings in the process: they quote values, and so patients.
"""

from slicevote_volumes.dicom_source import decode_instance
from slicevote_volumes.discovery import Discovery, discover, read_volumes
from slicevote_volumes.manifest import Manifest, ManifestError, Row, find_manifest, labelled, load_manifest
from slicevote_volumes.model import IntensityRange, Problem, Slice, Volume, VolumeError

__all__ = [
    "Discovery",
    "IntensityRange",
    "Manifest",
    "ManifestError",
    "Problem",
    "Row",
    "Slice",
    "Volume",
    "VolumeError",
    "decode_instance",
    "discover",
    "find_manifest",
    "labelled",
    "load_manifest",
    "read_volumes",
]
