"""Many volumes into an archive: side by side, tried again where that helps, left out where they are there already."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeGuard

from slicevote_volumes import Volume

from slicevote_client.client import Client
from slicevote_client.errors import ServerError
from slicevote_client.options import sampling_message
from slicevote_client.results import IngestResult

DEFAULT_PARALLEL = 2
"""While one volume is written to the server's disk, the next is embedded; more help where the server is quick."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0)
"""Between the attempts at one volume; together long enough for a server to end in order and be started again."""


@dataclass(frozen=True)
class IngestOutcome:
    """What became of a volume.

    Attributes:
        position: Its position among those given, from 0.
        volume: The volume.
        result: What the server said once it was on its disk; None where it was not sent, or failed.
        error: Why it failed.
    """

    position: int
    volume: Volume
    result: IngestResult | None = None
    error: Exception | None = None

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
) -> Iterator[IngestOutcome]:
    """Adds volumes to the archive, several at a time, and says of each what became of it, in the order of their ends.

    Nothing is sent before the first outcome is asked for. A volume that fails does not keep the others from going on.
    Where coming back helps, a volume is tried again for a minute and a half, so a server may be started anew meanwhile.
    Who stops asking breaks off what is under way; a volume that was just being written may be in the archive then,
    whole. A volume's memory is released once it is through.

    Args:
        client: The connection.
        volumes: Taken one by one, as they are needed.
        labels: As for `Client.ingest`.
        source: As for `Client.ingest`.
        sampling: As for `Client.ingest`.
        parallel: How many are under way at a time.
        skip_existing: Leave out those that every archive of the server has under the same name with as many slices;
            so a long ingest that was broken off goes on where it was. Labels and sampling are not compared.

    Raises:
        ValueError: `sampling` is none.
        ServerError: The server cannot be reached; raised at the start, or after the outcomes of all that was under way.
    """
    sampling_message(sampling)
    backbones = tuple(archive["backbone"]["name"] for archive in client.status()["archives"])
    hopeless, abandoned = threading.Event(), threading.Event()
    skip_where = backbones if skip_existing else ()
    sender = _Sender(client, labels, source, sampling, skip_where, hopeless, abandoned)
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="ingest")
    under_way: dict[Future[IngestOutcome], str] = {}
    unreachable: ServerError | None = None

    def ended() -> Iterator[IngestOutcome]:
        nonlocal unreachable
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            del under_way[future]
            outcome = future.result()
            if _is_unreachable(outcome.error):
                unreachable = outcome.error
                hopeless.set()
            yield outcome

    try:
        for position, volume in enumerate(volumes):
            # The same volume twice, as a file and its copy, one after the other: so the later one stays.
            while len(under_way) >= parallel or volume.id in under_way.values():
                yield from ended()
            if unreachable is not None:
                break
            under_way[pool.submit(sender.take, position, volume)] = volume.id
        while under_way:
            yield from ended()
        if unreachable is not None:
            raise unreachable
    finally:
        abandoned.set()
        hopeless.set()
        # Not waited for: they see that they are to stop at their next sign of progress.
        pool.shutdown(wait=False, cancel_futures=True)


class _BrokenOff(Exception):
    """Nobody asks any more."""


@dataclass(frozen=True)
class _Sender:
    """Sends single volumes, as often as that helps.

    Attributes:
        skip_where: Backbones whose archives have what is left out; none where nothing is.
        hopeless: Set where nothing is to be tried again.
        abandoned: Set where what is under way is to break off.
    """

    client: Client
    labels: Mapping[str, str] | None
    source: str | None
    sampling: str
    skip_where: tuple[str, ...]
    hopeless: threading.Event
    abandoned: threading.Event

    def take(self, position: int, volume: Volume) -> IngestOutcome:
        """Sends a volume, or leaves it out, and says what became of it."""
        try:
            return IngestOutcome(position, volume, self._send_patiently(volume))
        except Exception as error:  # noqa: BLE001  whatever is wrong with one volume is no reason to give up the others
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
            volume, labels=self.labels, source=self.source, sampling=self.sampling, on_progress=self._go_on
        )

    def _go_on(self, *_: int) -> None:
        if self.abandoned.is_set():
            raise _BrokenOff("nobody asks for what becomes of it any more")

    def _is_there(self, volume: Volume) -> bool:
        try:
            return all(
                self.client.volume(volume.id, backbone=name).slice_count == len(volume) for name in self.skip_where
            )
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return False
            raise


def _is_unreachable(error: Exception | None) -> TypeGuard[ServerError]:
    return isinstance(error, ServerError) and error.reason == "UNREACHABLE"
