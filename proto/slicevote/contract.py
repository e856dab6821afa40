"""Constants of the contract slicevote.v1: limits, name patterns, element types, and the interface of an ONNX file.

Client, server and exporters import them from here, so each stands once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from slicevote.v1 import volume_pb2

# --- A backbone's ONNX file -------------------------------------------------------------------------------------------

MANIFEST_KEY = "slicevote.manifest"
"""Metadata key of the ONNX file that holds the BackboneManifest as JSON."""

MANIFEST_SCHEMA_VERSION = 1

INPUT_NAME = "slices"
"""Input of the graph: float32 [N, 224, 224] in [0, 1]."""

OUTPUT_NAME = "embeddings"
"""Output of the graph: float32 [N, D], unit length."""

INPUT_SIZE = 224
"""Rows and columns of a slice at the input of the graph."""

BACKBONE_NAME = re.compile(r"(?!\.+$)[a-z0-9._-]{1,64}")
"""A backbone's name; it is also the name of its archive's folder."""

GOLDEN_SEED = 1
"""Seed that exporters use for the golden input."""


def golden_input(seed: int) -> NDArray[np.float32]:
    """Return the input of a golden embedding, float32 [1, 224, 224] in [0, 1)."""
    return np.random.default_rng(seed).random((1, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)


# --- Volumes and slices -----------------------------------------------------------------------------------------------

VOLUME_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LABEL_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SECRET_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

MAX_SLICES = 20_000
"""Slices of a volume."""

MAX_SIDE = 8192
"""Rows or columns of a slice."""

MAX_UID_LENGTH = 64
MAX_MODALITY_LENGTH = 16
MAX_PATIENT_KEY_LENGTH = 128
MAX_SOURCE_LENGTH = 1024
MAX_LABELS = 64
MAX_LABEL_VALUE_LENGTH = 256

MAX_MESSAGE_BYTES = 64 << 20
"""Largest message that either side sends or takes by default."""

ELEMENT_DTYPES: Mapping[volume_pb2.ElementType.ValueType, np.dtype[np.generic]] = {
    volume_pb2.ELEMENT_TYPE_UINT8: np.dtype("u1"),
    volume_pb2.ELEMENT_TYPE_INT8: np.dtype("i1"),
    volume_pb2.ELEMENT_TYPE_UINT16: np.dtype("<u2"),
    volume_pb2.ELEMENT_TYPE_INT16: np.dtype("<i2"),
    volume_pb2.ELEMENT_TYPE_UINT32: np.dtype("<u4"),
    volume_pb2.ELEMENT_TYPE_INT32: np.dtype("<i4"),
    volume_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    volume_pb2.ELEMENT_TYPE_FLOAT64: np.dtype("<f8"),
}
"""Little-endian dtype of every element type."""

ELEMENT_TYPES: Mapping[np.dtype[np.generic], volume_pb2.ElementType.ValueType] = {
    dtype: element_type for element_type, dtype in ELEMENT_DTYPES.items()
}
"""Element type of every dtype that a slice may have."""

# --- Searches and lists -----------------------------------------------------------------------------------------------

MAX_NEIGHBOURS = 100
MAX_TOP_K = 1000
MAX_CANDIDATES = 1000
"""Volumes that late interaction re-ranks."""

MAX_HITS = 200_000
"""Hits of one search: a ranking with all of them must fit into a message."""

MAX_EXCLUSIONS = 1000
MAX_LABEL_VALUES = 100
"""Values of one condition on a label."""

MAX_PAGE_SIZE = 1000
MAX_THUMBNAILS = 256
"""Thumbnails of one GetVolume."""

# --- Errors and patients ----------------------------------------------------------------------------------------------

ERROR_DOMAIN = "slicevote"
"""`ErrorInfo.domain` of every error."""

DISK_FULL = "DISK_FULL"
"""`ErrorInfo.reason` of a refused ingest: the archive's disk is full."""

PATIENT_SECRET_DIFFERS = "PATIENT_SECRET_DIFFERS"  # noqa: S105  a reason, not a secret
"""`ErrorInfo.reason` of a refused ingest: the archive's patient keys were made with another secret."""

VOLUME_UNKNOWN = "VOLUME_UNKNOWN"
"""`ErrorInfo.reason` of a call that names a volume that is not in the archive."""

SECRET_FINGERPRINT_MESSAGE = b"slicevote.v1 patient secret"
"""What the secret of patient keys is applied to for its fingerprint; see IngestHeader."""

DEFAULT_PORT = 50051
