"""Bulk ingest: several volumes at a time, retried where that helps, skipped where the archive has them already."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeGuard

from slicevote.contract import DISK_FULL, PATIENT_SECRET_DIFFERS
from slicevote_volumes import Volume, VolumeError

from slicevote_client.client import Client
from slicevote_client.errors import UNREACHABLE, ServerError
from slicevote_client.options import sampling_message
from slicevote_client.results import IngestResult

DEFAULT_PARALLEL = 2
"""While one volume is written to the server's disk, the next is embedded; more help where the server is fast."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0)
"""Pauses between the attempts at one volume; together long enough for a server to restart."""

_HOPELESS = (UNREACHABLE, DISK_FULL, PATIENT_SECRET_DIFFERS)
"""Reasons that every further volume would meet, too."""


@dataclass(frozen=True)
class IngestOutcome:
    """The outcome of one volume.

    Attributes:
        position: Its position among the volumes given, from 0.
        volume: The volume.
        result: The server's acknowledgement; None where the volume was skipped or failed.
        error: Why it failed; None where it did not.
    """

    position: int
    volume: Volume
    result: IngestResult | None = None
    error: ServerError | VolumeError | None = None

    @property
    def was_there(self) -> bool:
        """Whether it was skipped because the archive has it."""
        return self.result is None and self.error is None


def ingest_all(
    client: Client,
    volumes: Iterable[Volume],
    *,
    labels: Mapping[str, str] | None = None,
    source: str | None = None,
    sampling: str = "all",
    with_patient_key: bool = True,
    parallel: int = DEFAULT_PARALLEL,
    skip_existing: bool = False,
) -> Iterator[IngestOutcome]:
    """Add volumes to the archive, several at a time, and yield the outcome of each as it ends.

    Nothing is sent before the first outcome is asked for. A volume that fails does not stop the others. Where trying
    again helps, a volume is retried for a minute and a half, so that the server may be restarted meanwhile. Closing the
    iterator cancels what is under way; a volume that was just being written may then be in the archive, complete. The
    memory of a volume is released when it has ended.

    Args:
        client: The connection.
        volumes: Taken one by one, as they are needed.
        labels: As for `Client.ingest`.
        source: As for `Client.ingest`.
        sampling: As for `Client.ingest`.
        with_patient_key: As for `Client.ingest`.
        parallel: Number of volumes at a time.
        skip_existing: Skip volumes that every archive of the server has under the same ID with as many slices, so that
            an interrupted ingest can be resumed. Labels and sampling are not compared.

    Raises:
        InvalidOption: `sampling` is no sampling.
        ServerError: No further volume can be ingested: the server cannot be reached, its disk is full, or the
            archive's patient keys were made with another secret. Raised at the start, or after the outcomes of all
            volumes under way.
    """
    sampling_message(sampling)
    backbones = tuple(archive["backbone"]["name"] for archive in client.status()["archives"])
    hopeless, abandoned = threading.Event(), threading.Event()
    skip_where = backbones if skip_existing else ()
    sender = _Sender(client, labels, source, sampling, with_patient_key, skip_where, hopeless, abandoned)
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="ingest")
    under_way: dict[Future[IngestOutcome], str] = {}
    fatal: ServerError | None = None

    def ended() -> Iterator[IngestOutcome]:
        nonlocal fatal
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            del under_way[future]
            outcome = future.result()
            if stops_all(outcome.error):
                fatal = outcome.error
                hopeless.set()
            yield outcome

    try:
        for position, volume in enumerate(volumes):
            # A volume that is given twice goes one after the other, so that the later one stays.
            while len(under_way) >= parallel or volume.id in under_way.values():
                yield from ended()
            if fatal is not None:
                break
            under_way[pool.submit(sender.take, position, volume)] = volume.id
        while under_way:
            yield from ended()
        if fatal is not None:
            raise fatal
    finally:
        abandoned.set()
        hopeless.set()
        # Not waited for: each stops at its next progress message.
        pool.shutdown(wait=False, cancel_futures=True)


class _Abandoned(Exception):
    """The caller has closed the iterator."""


@dataclass(frozen=True)
class _Sender:
    """Sends single volumes, and retries where that helps.

    Attributes:
        skip_where: Backbones whose archives must all have a volume for it to be skipped; empty: nothing is skipped.
        hopeless: Set when nothing is to be retried.
        abandoned: Set when what is under way is to stop.
    """

    client: Client
    labels: Mapping[str, str] | None
    source: str | None
    sampling: str
    with_patient_key: bool
    skip_where: tuple[str, ...]
    hopeless: threading.Event
    abandoned: threading.Event

    def take(self, position: int, volume: Volume) -> IngestOutcome:
        """Send a volume, or skip it, and return the outcome."""
        try:
            return IngestOutcome(position, volume, self._send_patiently(volume))
        except (ServerError, VolumeError) as error:
            return IngestOutcome(position, volume, error=error)
        finally:
            volume.release()

    def _send_patiently(self, volume: Volume) -> IngestResult | None:
        patience_s = sum(_PAUSES_S)
        for pause_s in _PAUSES_S:
            try:
                return self._send(volume)
            except ServerError as error:
                wanted_s = max(error.retry_after_s or 0.0, pause_s)
                if not error.is_transient or wanted_s > patience_s or self.hopeless.wait(wanted_s):
                    raise
                patience_s -= wanted_s
        return self._send(volume)

    def _send(self, volume: Volume) -> IngestResult | None:
        if self.skip_where and self._is_there(volume):
            return None
        return self.client.ingest(
            volume,
            labels=self.labels,
            source=self.source,
            sampling=self.sampling,
            with_patient_key=self.with_patient_key,
            on_progress=self._go_on,
        )

    def _go_on(self, *_: int) -> None:
        if self.abandoned.is_set():
            raise _Abandoned

    def _is_there(self, volume: Volume) -> bool:
        try:
            return all(
                self.client.volume(volume.id, backbone=name).slice_count == len(volume) for name in self.skip_where
            )
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return False
            raise


def stops_all(error: Exception | None) -> TypeGuard[ServerError]:
    """Return whether every further volume would fail, too: no server, a full disk, another patient secret."""
    return isinstance(error, ServerError) and error.reason in _HOPELESS
