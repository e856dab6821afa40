"""Reads sources one thread ahead of the backbone: decoded, prepared and stacked into batches.

Headers are read ahead of the pixels, so that it is soon known how much there is to do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Problem, Volume, VolumeError, discover

from slicevote_server.errors import InvalidInput
from slicevote_server.evaluation.datasets import Source
from slicevote_server.evaluation.published import MODALITY
from slicevote_server.evaluation.store import Contents, VolumeSlices
from slicevote_server.evaluation.timing import Times
from slicevote_server.intake import Intake, VolumeHeader
from slicevote_server.intensity import GreySlice, IntensityPolicy

_BATCHES_AHEAD = 8
_PATIENCE_S = 0.1


@dataclass(frozen=True)
class Batch:
    """Prepared slices of one source: float32 [N, 224, 224]."""

    slices: NDArray[np.float32]


@dataclass(frozen=True)
class Finished:
    """A source is through.

    Attributes:
        source: Which.
        contents: What it holds; no volumes if it could not be used.
    """

    source: Source
    contents: Contents


@dataclass(frozen=True)
class _Headers:
    volumes: Sequence[Volume]
    problems: Sequence[Problem]


class Reader:
    """Reads sources in the background; a context manager that ends it.

    Args:
        sources: In the order in which they are wanted.
        policy: How grey values are made of pixels.
        batch_size: Slices a batch; the last of a source may have fewer.
        times: Where the time is written down.
        on_header: Called with the number of slices of every source once it is known, from another thread.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        policy: IntensityPolicy,
        batch_size: int,
        times: Times,
        on_header: Callable[[int], None],
    ) -> None:
        self._sources = sources
        self._policy = policy
        self._batch_size = batch_size
        self._times = times
        self._on_header = on_header
        self._queue: queue.Queue[Batch | Finished | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        self._stopping = threading.Event()
        self._headers = ThreadPoolExecutor(1, thread_name_prefix="headers")
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self.locks = (threading.Lock(), threading.Lock())
        """Held while headers or pixels are read; who holds both has the machine alone."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._headers.shutdown(cancel_futures=True)
        self._thread.join()

    def __iter__(self) -> Iterator[Batch | Finished]:
        """Gives the batches of every source, and after them what there is to say of it."""
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    def _run(self) -> None:
        try:
            futures = [self._headers.submit(self._read_headers, source) for source in self._sources]
            for source, future in zip(self._sources, futures, strict=True):
                self._put(self._read(source, future))
                if self._stopping.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  belongs to whoever iterates
            self._put(error)
        else:
            self._put(None)

    def _put(self, entry: Batch | Finished | BaseException | None) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(entry, timeout=_PATIENCE_S)
            except queue.Full:
                continue
            return

    def _read_headers(self, source: Source) -> _Headers:
        with self.locks[0], self._times.stage("headers"):
            found = discover([source.path], modality=source.labels[MODALITY])
        problems = list(found.problems)
        if not found.volumes and not problems:
            problems.append(Problem(source.path, "holds no scan"))
        self._on_header(sum(len(volume) for volume in found.volumes))
        return _Headers(found.volumes, problems)

    def _read(self, source: Source, future: Future[_Headers]) -> Finished:
        headers = future.result()
        described: list[VolumeSlices] = []
        waiting: list[GreySlice] = []
        try:
            for volume in headers.volumes:
                visible: list[int] = []
                for entry in self._prepared(volume):
                    if entry.grey is None:
                        continue
                    visible.append(entry.index)
                    waiting.append(entry)
                    if len(waiting) == self._batch_size:
                        self._send(waiting)
                described.append(VolumeSlices(volume.positions_mm, tuple(visible)))
            self._send(waiting)
        except VolumeError as error:
            return _unusable(source, headers, Problem(error.path or source.path, error.reason))
        except InvalidInput as error:
            return _unusable(source, headers, Problem(source.path, str(error)))
        finally:
            for volume in headers.volumes:
                volume.release()
        return Finished(source, Contents(tuple(described), tuple(headers.problems)))

    def _prepared(self, volume: Volume) -> Iterator[GreySlice]:
        with self.locks[1], self._times.stage("reading"):
            header = VolumeHeader(volume.id, volume.modality, volume.positions_mm, volume.intensity_range())
        intake = Intake(header, range(len(volume)), self._policy, thumbnails=False)
        for index in range(len(volume)):
            if self._stopping.is_set():
                return
            with self.locks[1], self._times.stage("reading"):
                (entry,) = intake.take([volume.slice(index)])
            yield entry

    def _send(self, waiting: list[GreySlice]) -> None:
        if not waiting:
            return
        with self._times.stage("reading"):
            batch = np.stack([entry.grey for entry in waiting if entry.grey is not None])
        waiting.clear()
        self._put(Batch(batch))


def _unusable(source: Source, headers: _Headers, problem: Problem) -> Finished:
    return Finished(source, Contents((), (*headers.problems, problem)))
