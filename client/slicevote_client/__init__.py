"""The client of slicevote.

>>> from slicevote_client import Client, read_volumes
>>> with Client("localhost:50051") as archive:
...     ranking = archive.search(read_volumes("scan/")[0])
"""

from slicevote_volumes import Volume, VolumeError, discover, read_volumes

from slicevote_client.bulk import IngestOutcome, ingest_all
from slicevote_client.client import Client
from slicevote_client.errors import ServerError
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
    "LabelShare",
    "Match",
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
