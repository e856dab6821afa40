"""The Python client of slicevote.

>>> from slicevote_client import Client, read_volumes
>>> with Client("localhost:50051") as archive:
...     ranking = archive.search(read_volumes("scan/")[0])

Importing this package silences gRPC's own log lines on stderr, unless GRPC_VERBOSITY is set: every failure of a call is
raised as an error.
"""

import os  # before gRPC, which reads its settings when it is imported

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from slicevote_volumes import Volume, VolumeError, discover, read_volumes

from slicevote_client.bulk import IngestOutcome, ingest_all
from slicevote_client.client import Client
from slicevote_client.errors import InvalidOption, ServerError
from slicevote_client.patients import PatientSecretError
from slicevote_client.results import (
    Hit,
    IndexedSlice,
    IngestResult,
    LabelShare,
    Match,
    Ranking,
    StageTimes,
    Tally,
    VolumeRecord,
)

__all__ = [
    "Client",
    "Hit",
    "IndexedSlice",
    "IngestOutcome",
    "IngestResult",
    "InvalidOption",
    "LabelShare",
    "Match",
    "PatientSecretError",
    "Ranking",
    "ServerError",
    "StageTimes",
    "Tally",
    "Volume",
    "VolumeError",
    "VolumeRecord",
    "discover",
    "ingest_all",
    "read_volumes",
]
