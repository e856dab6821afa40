"""The client: volumes to a server, answers back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import grpc
import numpy as np
from slicevote.contract import DEFAULT_PORT, ELEMENT_TYPES, MAX_MESSAGE_BYTES, MAX_PAGE_SIZE
from slicevote.v1 import archive_pb2, archive_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, sampling_pb2, volume_pb2
from slicevote_volumes import Slice, Volume
from slicevote_volumes.modality import normalise_modality

from slicevote_client.errors import ServerError, server_error
from slicevote_client.options import INDEXES, aggregation_message, sampling_message
from slicevote_client.patients import patient_key, patient_secret
from slicevote_client.results import IndexedSlice, IngestResult, Ranking, Tally, VolumeRecord, status_document

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

DEFAULT_SERVER = f"localhost:{DEFAULT_PORT}"


class Client:
    """A connection to a slicevote server; may be used by several threads.

    Args:
        server: HOST:PORT.
        secret: What patient keys are made with; by default the user's own (see `patients.patient_secret`), which is
            read, or made, when the first volume with a PatientID is sent.
        timeout_s: How long any one call may take; None means as long as it takes.

    Every method raises `ServerError` where the server refuses or cannot be reached.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, *, secret: bytes | None = None, timeout_s: float | None = None
    ) -> None:
        self._address = server
        self._secret = secret
        self._lock = threading.Lock()
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            server,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # One that is started again is found soon.
                ("grpc.max_reconnect_backoff_ms", 5_000),
                # A server that has vanished without a word is noticed in the middle of a call.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        self._retrieval = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._archive = archive_pb2_grpc.ArchiveServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def search(
        self,
        volume: Volume,
        *,
        index: str = "hnsw",
        sampling: str = "all",
        aggregation: str = "count",
        neighbours: int = 1,
        top_k: int = 10,
        labels: Mapping[str, Sequence[str]] | None = None,
        exclude_volumes: Collection[str] = (),
        exclude_patients: Collection[str] = (),
        include_own: bool = False,
        late_interaction: bool = False,
        slab: tuple[int, int] | None = None,
        stop_when_decided: bool = False,
        backbone: str = "",
        on_tally: Callable[[Tally], None] | None = None,
    ) -> Ranking:
        """Ranks the volumes of the archive by how much they look like this one.

        Args:
            volume: The query; only the slices that the server asks for are decoded and sent.
            index: "hnsw", "lsh" or "exact".
            sampling: Which slices vote: "all", "random:N[:SEED]", "mm:GAP", "nth:STEP", "even:N".
            aggregation: How hits become votes: "count", "gaussian[:SIGMA]", "similarity", "slicewise".
            neighbours: Hits a slice.
            top_k: Length of the ranking.
            labels: Only volumes that have, for every one of these labels, one of the values.
            exclude_volumes: Names of volumes that may not vote.
            exclude_patients: Keys of patients whose volumes may not vote.
            include_own: Let the query itself and other volumes of its patient vote, too.
            late_interaction: Re-rank by late interaction.
            slab: First and last slice of the part of the query that counts.
            stop_when_decided: End as soon as the first match cannot change.
            backbone: Name of the backbone; by default the server's first.
            on_tally: Called with every tally.

        Raises:
            ValueError: An option is none of those above.
            slicevote_volumes.VolumeError: A slice cannot be decoded.
        """
        if index not in INDEXES:
            raise ValueError(f"'{index}' is no index; known are: {', '.join(INDEXES)}")
        own_volumes = [] if include_own else [volume.id]
        own_patients = [] if include_own else [key for key in [self._patient_key(volume)] if key]
        header = retrieval_pb2.SearchHeader(
            volume=_volume_header(volume),
            backbone=backbone,
            index=INDEXES[index],
            sampling=sampling_message(sampling),
            aggregation=aggregation_message(aggregation),
            neighbours=neighbours,
            top_k=top_k,
            filter=retrieval_pb2.VolumeFilter(
                labels=_label_conditions(labels),
                exclude_volume_ids=sorted({*exclude_volumes, *own_volumes}),
                exclude_patient_keys=sorted({*exclude_patients, *own_patients}),
            ),
            late_interaction=retrieval_pb2.LateInteraction() if late_interaction else None,
            stop_when_decided=stop_when_decided,
            slab=None if slab is None else volume_pb2.SliceRange(first=slab[0], last=slab[1]),
        )
        conversation = _Conversation(
            volume,
            retrieval_pb2.SearchRequest(header=header),
            lambda image: retrieval_pb2.SearchRequest(slice=image),
        )
        ranking = None
        # To the end of the stream, so that the server does not see us hang up.
        for response in self._converse(conversation, self._retrieval.Search):
            match response.WhichOneof("message"):
                case "tally":
                    if on_tally is not None:
                        on_tally(Tally.of(response.tally))
                case "ranking":
                    ranking = Ranking.of(response.ranking)
                    conversation.end()
        if ranking is None:
            raise _broken_off()
        return ranking

    def ingest(
        self,
        volume: Volume,
        *,
        labels: Mapping[str, str] | None = None,
        source: str | None = None,
        sampling: str = "all",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> IngestResult:
        """Adds a volume to the archive, or replaces it; when this returns it is on the server's disk.

        Args:
            volume: The volume.
            labels: Labels beside, or in place of, the volume's own.
            source: Where it comes from, in place of the volume's own; no patient data.
            sampling: Which slices to index.
            on_progress: Called with the number of slices embedded and planned.

        Raises:
            ValueError: `sampling` is none.
            slicevote_volumes.VolumeError: A slice cannot be decoded; nothing of the volume is in the archive then.
        """
        header = archive_pb2.IngestHeader(
            volume=_volume_header(volume),
            labels={key: _label_value(key, value) for key, value in {**volume.labels, **(labels or {})}.items()},
            patient_key=self._patient_key(volume),
            source=volume.source if source is None else source,
            study_instance_uid=volume.study_instance_uid,
            series_instance_uid=volume.series_instance_uid,
            sampling=sampling_message(sampling),
        )
        conversation = _Conversation(
            volume,
            archive_pb2.IngestVolumeRequest(header=header),
            lambda image: archive_pb2.IngestVolumeRequest(slice=image),
        )
        result = None
        for response in self._converse(conversation, self._archive.IngestVolume):
            match response.WhichOneof("message"):
                case "progress":
                    if on_progress is not None:
                        on_progress(response.progress.embedded_slice_count, response.progress.planned_slice_count)
                case "result":
                    result = IngestResult.of(response.result)
                    conversation.end()
        if result is None:
            raise _broken_off()
        return result

    def volumes(
        self, *, labels: Mapping[str, Sequence[str]] | None = None, backbone: str = ""
    ) -> Iterator[VolumeRecord]:
        """Gives the volumes of the archive in order of their names, page by page; without slice positions."""
        token = ""
        while True:
            page = self._call(
                self._archive.ListVolumes,
                archive_pb2.ListVolumesRequest(
                    page_size=MAX_PAGE_SIZE, page_token=token, labels=_label_conditions(labels), backbone=backbone
                ),
            )
            yield from map(VolumeRecord.of, page.volumes)
            token = page.next_page_token
            if not token:
                return

    def volume(self, volume_id: str, *, backbone: str = "") -> VolumeRecord:
        """Gives one volume's record."""
        request = archive_pb2.GetVolumeRequest(volume_id=volume_id, backbone=backbone)
        return VolumeRecord.of(self._call(self._archive.GetVolume, request).volume)

    def slices(self, volume_id: str, *, thumbnails: Sequence[int] = (), backbone: str = "") -> tuple[IndexedSlice, ...]:
        """Gives the indexed slices of a volume; those named (at most 256) with their thumbnails."""
        request = archive_pb2.GetVolumeRequest(
            volume_id=volume_id, backbone=backbone, include_slices=True, thumbnail_slices=thumbnails
        )
        return tuple(map(IndexedSlice.of, self._call(self._archive.GetVolume, request).slices))

    def delete(self, volume_id: str) -> VolumeRecord:
        """Takes a volume out of the archive, durably; gives what it was."""
        response = self._call(self._archive.DeleteVolume, archive_pb2.DeleteVolumeRequest(volume_id=volume_id))
        return VolumeRecord.of(response.volume)

    def status(self) -> dict[str, Any]:
        """Gives what the server holds and how it runs, as plain data (the message GetArchiveResponse)."""
        return status_document(self._call(self._archive.GetArchive, archive_pb2.GetArchiveRequest()))

    def _patient_key(self, volume: Volume) -> str:
        if not volume.patient_id:
            return ""
        with self._lock:
            if self._secret is None:
                self._secret = patient_secret()
        return patient_key(volume.patient_id, self._secret)

    def _call(self, method: Callable[..., ResponseT], request: Any) -> ResponseT:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise server_error(cast("grpc.Call", error), self._address) from error

    def _converse(self, conversation: _Conversation[RequestT], method: Callable[..., Any]) -> Iterator[Any]:
        call = method(conversation.requests(), timeout=self._timeout_s)
        conversation.on_failure = call.cancel
        try:
            for response in call:
                if response.WhichOneof("message") == "plan":
                    conversation.follow(response.plan)
                else:
                    yield response
        except grpc.RpcError as error:
            if conversation.failure is not None:
                raise conversation.failure from None
            raise server_error(cast("grpc.Call", error), self._address) from error
        finally:
            conversation.end()
            call.cancel()


class _Conversation(Generic[RequestT]):
    """The client's side of a stream: the header, then the slices of the plan once it is known."""

    def __init__(self, volume: Volume, header: RequestT, wrap: Callable[[volume_pb2.Slice], RequestT]) -> None:
        self._volume = volume
        self._header = header
        self._wrap = wrap
        self._plan: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self.failure: Exception | None = None
        self.on_failure: Callable[[], object] = lambda: None

    def requests(self) -> Iterator[RequestT]:
        """Gives the messages; gRPC takes them on a thread of its own, one when there is room for it."""
        yield self._header
        for index in self._plan.get():
            if self._ended.is_set():
                return
            try:
                message = _slice_message(self._volume.slice(index))
            except Exception as error:  # noqa: BLE001  raised again on the caller's thread
                self.failure = error
                self.on_failure()
                return
            yield self._wrap(message)

    def follow(self, plan: sampling_pb2.SlicePlan) -> None:
        """Lets the slices of the plan go."""
        self._plan.put(tuple(plan.slice_indices))

    def end(self) -> None:
        """Lets no further slice go."""
        self._ended.set()
        self._plan.put(())


def _volume_header(volume: Volume) -> volume_pb2.VolumeHeader:
    grey = volume.intensity_range()
    return volume_pb2.VolumeHeader(
        volume_id=volume.id,
        modality=volume.modality,
        slice_positions_mm=volume.positions_mm,
        intensity_range=None if grey is None else volume_pb2.IntensityRange(low=grey.low, high=grey.high),
    )


def _slice_message(image: Slice) -> volume_pb2.Slice:
    little_endian = np.ascontiguousarray(image.pixels, dtype=image.pixels.dtype.newbyteorder("<"))
    return volume_pb2.Slice(
        index=image.index,
        pixels=volume_pb2.PixelData(
            rows=image.pixels.shape[0],
            columns=image.pixels.shape[1],
            element_type=ELEMENT_TYPES[little_endian.dtype],
            data=little_endian.tobytes(),
            rescale_slope=image.rescale_slope,
            rescale_intercept=image.rescale_intercept,
        ),
        sop_instance_uid=image.sop_instance_uid,
    )


def _label_conditions(labels: Mapping[str, Sequence[str]] | None) -> list[retrieval_pb2.LabelCondition]:
    return [
        retrieval_pb2.LabelCondition(key=key, any_of=[_label_value(key, value) for value in values])
        for key, values in (labels or {}).items()
    ]


def _label_value(key: str, value: str) -> str:
    return normalise_modality(value) if key == "modality" else value


def _broken_off() -> ServerError:
    return ServerError("the server ended the stream without a result", code="INTERNAL", reason="NO_RESULT")
