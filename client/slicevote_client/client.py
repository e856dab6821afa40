"""The client: one connection to a server, one method for every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from slicevote.contract import DEFAULT_PORT, MAX_MESSAGE_BYTES, MAX_PAGE_SIZE
from slicevote.v1 import archive_pb2, archive_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, volume_pb2
from slicevote_volumes import Volume
from slicevote_volumes.modality import normalise_modality

from slicevote_client.address import server_address
from slicevote_client.conversation import Conversation, volume_header
from slicevote_client.errors import ServerError, server_error
from slicevote_client.options import aggregation_message, index_value, sampling_message
from slicevote_client.patients import patient_key, patient_secret, secret_fingerprint
from slicevote_client.results import IndexedSlice, IngestResult, Ranking, Tally, VolumeRecord, status_document

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

DEFAULT_SERVER = f"localhost:{DEFAULT_PORT}"


class Client:
    """A connection to a slicevote server, safe to use from several threads.

    Args:
        server: HOST or HOST:PORT; see `address.server_address`.
        secret: Secret that patient keys are made with; by default the user's own (see `patients.patient_secret`), which
            is read, or created, when the first volume with a PatientID is sent.
        timeout_s: Limit of every call in seconds; None means no limit.

    Raises:
        InvalidOption: `server` is no address.
        ServerError: From every method: the server refuses the call or cannot be reached.
        PatientSecretError: From `search` and `ingest`: the secret's file cannot be used.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, *, secret: bytes | None = None, timeout_s: float | None = None
    ) -> None:
        self._address = server_address(server)
        self._secret = secret
        self._lock = threading.Lock()
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            self._address,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # A restarted server is found soon.
                ("grpc.max_reconnect_backoff_ms", 5_000),
                # A server that vanished is noticed in the middle of a call.
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
        """Close the connection."""
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
        """Rank the volumes of the archive by how much they look like this one.

        Args:
            volume: The query; only the slices that the server plans are decoded and sent.
            index: "hnsw", "lsh" or "exact".
            sampling: Which slices vote: "all", "random:N[:SEED]", "mm:GAP", "nth:STEP", "even:N".
            aggregation: How hits become votes: "count", "gaussian[:SIGMA]", "similarity", "slice-wise".
            neighbours: Hits per slice.
            top_k: Length of the ranking.
            labels: Only volumes that have, for every one of these labels, one of its values.
            exclude_volumes: IDs of volumes that may not vote.
            exclude_patients: Keys of patients whose volumes may not vote.
            include_own: Let the query itself vote, and all volumes of its series, study and patient. By default they
                are excluded as far as they can be told; `Ranking.own_excluded` says by what.
            late_interaction: Re-rank by late interaction.
            slab: First and last slice of the part of the query that counts.
            stop_when_decided: End as soon as the first match cannot change.
            backbone: Name of the backbone; by default the server's first.
            on_tally: Called with every tally.

        Raises:
            InvalidOption: `index`, `sampling` or `aggregation` is none of those above.
            slicevote_volumes.VolumeError: A slice cannot be decoded.
        """
        own = {} if include_own else self._own_exclusions(volume)
        patients = sorted({*exclude_patients, *own.get("patient", ())})
        header = retrieval_pb2.SearchHeader(
            volume=volume_header(volume),
            backbone=backbone,
            index=index_value(index),
            sampling=sampling_message(sampling),
            aggregation=aggregation_message(aggregation),
            neighbours=neighbours,
            top_k=top_k,
            filter=retrieval_pb2.VolumeFilter(
                labels=_label_conditions(labels),
                exclude_volume_ids=sorted({*exclude_volumes, *own.get("volume", ())}),
                exclude_series_instance_uids=own.get("series", ()),
                exclude_study_instance_uids=own.get("study", ()),
                exclude_patient_keys=patients,
                patient_secret_fingerprint=secret_fingerprint(self._patient_secret()) if patients else "",
            ),
            late_interaction=retrieval_pb2.LateInteraction() if late_interaction else None,
            stop_when_decided=stop_when_decided,
            slab=None if slab is None else volume_pb2.SliceRange(first=slab[0], last=slab[1]),
        )
        conversation = Conversation(
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
                    ranking = Ranking.of(response.ranking, own_excluded=tuple(own))
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
        with_patient_key: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> IngestResult:
        """Add a volume to the archive, or replace it; when this returns it is on the server's disk.

        Args:
            volume: The volume.
            labels: Labels in addition to the volume's own; they win.
            source: Where it comes from, in place of the volume's own source; no patient data.
            sampling: Which slices to index.
            with_patient_key: Send a keyed hash of the PatientID, by which volumes of one patient are known.
            on_progress: Called with the number of slices embedded and planned.

        Raises:
            InvalidOption: `sampling` is no sampling.
            slicevote_volumes.VolumeError: A slice cannot be decoded; the archive stays as it was.
        """
        key = self._patient_key(volume) if with_patient_key else ""
        header = archive_pb2.IngestHeader(
            volume=volume_header(volume),
            labels={key: _label_value(key, value) for key, value in {**volume.labels, **(labels or {})}.items()},
            patient_key=key,
            patient_secret_fingerprint=secret_fingerprint(self._patient_secret()) if key else "",
            source=volume.source if source is None else source,
            study_instance_uid=volume.study_instance_uid,
            series_instance_uid=volume.series_instance_uid,
            sampling=sampling_message(sampling),
        )
        conversation = Conversation(
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
        self, *, labels: Mapping[str, Sequence[str]] | None = None, id_prefix: str = "", backbone: str = ""
    ) -> Iterator[VolumeRecord]:
        """Yield the volumes of the archive in the order of their IDs, without slice positions.

        Args:
            labels: Only volumes that have, for every one of these labels, one of its values.
            id_prefix: Only volumes whose ID begins with this.
            backbone: Name of the backbone; by default the server's first.
        """
        token = ""
        while True:
            page = self._call(
                self._archive.ListVolumes,
                archive_pb2.ListVolumesRequest(
                    page_size=MAX_PAGE_SIZE,
                    page_token=token,
                    labels=_label_conditions(labels),
                    volume_id_prefix=id_prefix,
                    backbone=backbone,
                ),
            )
            yield from map(VolumeRecord.of, page.volumes)
            token = page.next_page_token
            if not token:
                return

    def labels(self, *, backbone: str = "") -> dict[str, dict[str, int]]:
        """Return the values of every label in the archive, with the number of volumes that have each."""
        request = archive_pb2.ListLabelsRequest(backbone=backbone)
        response = self._call(self._archive.ListLabels, request)
        return {label.key: {value.value: value.volume_count for value in label.values} for label in response.labels}

    def volume(self, volume_id: str, *, backbone: str = "") -> VolumeRecord:
        """Return the record of one volume."""
        request = archive_pb2.GetVolumeRequest(volume_id=volume_id, backbone=backbone)
        return VolumeRecord.of(self._call(self._archive.GetVolume, request).volume)

    def slices(self, volume_id: str, *, thumbnails: Sequence[int] = (), backbone: str = "") -> tuple[IndexedSlice, ...]:
        """Return the indexed slices of a volume; those named in `thumbnails` (at most 256) with a thumbnail."""
        request = archive_pb2.GetVolumeRequest(
            volume_id=volume_id, backbone=backbone, include_slices=True, thumbnail_slices=thumbnails
        )
        return tuple(map(IndexedSlice.of, self._call(self._archive.GetVolume, request).slices))

    def delete(self, volume_id: str) -> VolumeRecord:
        """Delete a volume from the archive, durably; return its last record."""
        response = self._call(self._archive.DeleteVolume, archive_pb2.DeleteVolumeRequest(volume_id=volume_id))
        return VolumeRecord.of(response.volume)

    def status(self) -> dict[str, Any]:
        """Return what the server holds and how it runs, as plain data (the message GetArchiveResponse)."""
        return status_document(self._call(self._archive.GetArchive, archive_pb2.GetArchiveRequest()))

    def _own_exclusions(self, volume: Volume) -> dict[str, list[str]]:
        """Return what the query's own volumes are told by, as far as it is known: "volume", "series", ..."""
        known = {
            "volume": volume.id,
            "series": volume.series_instance_uid,
            "study": volume.study_instance_uid,
            "patient": self._patient_key(volume),
        }
        return {by: [value] for by, value in known.items() if value}

    def _patient_key(self, volume: Volume) -> str:
        return patient_key(volume.patient_id, self._patient_secret()) if volume.patient_id else ""

    def _patient_secret(self) -> bytes:
        with self._lock:
            if self._secret is None:
                self._secret = patient_secret()
            return self._secret

    def _call(self, method: Callable[..., ResponseT], request: Any) -> ResponseT:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise server_error(cast("grpc.Call", error), self._address) from error

    def _converse(self, conversation: Conversation[RequestT], method: Callable[..., Any]) -> Iterator[Any]:
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


def _label_conditions(labels: Mapping[str, Sequence[str]] | None) -> list[retrieval_pb2.LabelCondition]:
    return [
        retrieval_pb2.LabelCondition(key=key, any_of=[_label_value(key, value) for value in values])
        for key, values in (labels or {}).items()
    ]


def _label_value(key: str, value: str) -> str:
    return normalise_modality(value) if key == "modality" else value


def _broken_off() -> ServerError:
    return ServerError("the server ended the stream without a result", code="INTERNAL", reason="NO_RESULT")
