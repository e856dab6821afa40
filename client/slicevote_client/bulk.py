"""Many volumes into an archive: side by side, tried again where that helps, left out where they are there already."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from slicevote_volumes import Volume, VolumeError

from slicevote_client.client import Client
from slicevote_client.errors import ServerError
from slicevote_client.results import IngestResult

DEFAULT_PARALLEL = 2
"""While one volume is written to the server's disk, the next is embedded; more help where the server is quick."""

_ATTEMPTS = 4
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of a volume.

    Attributes:
        place: Its place among those given.
        volume: The volume.
        result: What the server said once it was on its disk; None where it was not sent, or failed.
        error: Why it failed.
    """

    place: int
    volume: Volume
    result: IngestResult | None = None
    error: ServerError | VolumeError | None = None

    @property
    def was_there(self) -> bool:
        """Whether it was left out because the archive has it."""
        return self.result is None and self.error is None


def ingest_all(
    client: Client,
    volumes: Iterable[Volume],
    *,
    labels: Mapping[str, str] | None = None,
    source: str | None = None,
    sampling: str = "all",
    parallel: int = DEFAULT_PARALLEL,
    skip_existing: bool = False,
) -> Iterator[Outcome]:
    """Adds volumes to the archive, several at a time, and says of each what became of it, in the order of their ends.

    A volume that fails does not keep the others from going on. Where the server says that coming back helps, a volume
    is tried again a few times. A volume's memory is released once it is through.

    Args:
        client: The connection.
        volumes: Taken one by one, as they are needed.
        labels: As for `Client.ingest`.
        source: As for `Client.ingest`.
        sampling: As for `Client.ingest`.
        parallel: How many are under way at a time.
        skip_existing: Leave out those that every archive of the server has under the same name with as many slices;
            so a long ingest that was broken off goes on where it was. Labels are not compared.

    Raises:
        ServerError: The server cannot be reached.
    """
    backbones = [archive["backbone"]["name"] for archive in client.status()["archives"]] if skip_existing else []

    def take(place: int, volume: Volume) -> Outcome:
        try:
            if skip_existing and _is_there(client, volume, backbones):
                return Outcome(place, volume)
            result = _patiently(client, volume, labels, source, sampling)
        except (ServerError, VolumeError) as error:
            if isinstance(error, ServerError) and error.reason == "UNREACHABLE":
                raise
            return Outcome(place, volume, error=error)
        finally:
            volume.release()
        return Outcome(place, volume, result)

    pool = ThreadPoolExecutor(parallel, thread_name_prefix="ingest")
    under_way: set[Future[Outcome]] = set()
    try:
        for place, volume in enumerate(volumes):
            under_way.add(pool.submit(take, place, volume))
            if len(under_way) == parallel:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        # Not waited for: who breaks off closes the connection, and with it what is under way.
        pool.shutdown(wait=False, cancel_futures=True)


def _is_there(client: Client, volume: Volume, backbones: Iterable[str]) -> bool:
    try:
        return all(client.volume(volume.id, backbone=name).slice_count == len(volume) for name in backbones)
    except ServerError as error:
        if error.code == "NOT_FOUND":
            return False
        raise


def _patiently(
    client: Client, volume: Volume, labels: Mapping[str, str] | None, source: str | None, sampling: str
) -> IngestResult:
    for attempt in range(1, _ATTEMPTS):
        try:
            return client.ingest(volume, labels=labels, source=source, sampling=sampling)
        except ServerError as error:
            if not error.is_transient or error.reason == "UNREACHABLE":
                raise
            time.sleep(max(error.retry_after_s or 0.0, _PAUSE_S * attempt))
    return client.ingest(volume, labels=labels, source=source, sampling=sampling)
