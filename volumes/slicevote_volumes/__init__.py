"""Reads DICOM series and NIfTI files as volumes: geometry, and transversal slices that are decoded on demand.

Every volume is turned to the nearest axial orientation: slice 0 is the most inferior one, rows run from anterior to
posterior, columns from the patient's right to left. DICOM and NIfTI of the same scan give the same slices.

Importing this package turns off pydicom's warnings in the process: they quote values, and so patients.
"""

from slicevote_volumes.dicom.instance_sources import Instance
from slicevote_volumes.dicom.slices import decode_instance
from slicevote_volumes.discovery import Discovery, discover, discover_instances, read_volumes
from slicevote_volumes.errors import Problem, VolumeError
from slicevote_volumes.manifest import Manifest, ManifestError, Row, find_manifest, labelled, load_manifest
from slicevote_volumes.volume import IntensityRange, Slice, Volume

__all__ = [
    "Discovery",
    "Instance",
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
    "discover_instances",
    "find_manifest",
    "labelled",
    "load_manifest",
    "read_volumes",
]
