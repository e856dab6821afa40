"""A Qdrant Edge shard as an archive, for use by one process and one thread.

`EdgeStore` runs inside the worker process (see `worker`): Edge holds the interpreter lock in every call, so nothing
else may live there. Its methods are those of `interface.Archive`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from slicevote_server.archive import filters, points
from slicevote_server.archive.data_folder import make_writable_folder
from slicevote_server.archive.interface import (
    EVERYTHING,
    ArchiveIdentity,
    IndexedSlices,
    Neighbours,
    Occupancy,
    Scope,
    VolumeRecord,
)
from slicevote_server.archive.process_lock import LockHeld, ProcessLock
from slicevote_server.errors import StartupError
from slicevote_server.runtime.interface import Numerics
from slicevote_server.voting import Hit

logger = logging.getLogger(__name__)

_WRITE_CHUNK = 512
_PAGE = 1000
_LOCK_TIMEOUT_S = 60.0
_ALL_TAGS = 1 << 32
# How many places beyond those asked for are looked at for ties; more only where these do not settle it.
_TIE_MARGIN = 1
_TIE_GROWTH = 8
_TIE_LIMIT = 4096


@dataclass(frozen=True)
class EdgeSettings:
    """How the graph is built and searched.

    Attributes:
        m: Edges a node.
        ef_construct: Candidates while building.
        ef_search: Candidates while searching. Embeddings of slices lie close together, which a graph finds hard: with
            half of it, and of the two above, 1 of 100 slices missed its nearest on real scans, so 1 of 5,000.
        segment_count: Segments that the optimizer aims at; more make it cheaper to add to a large archive.
        indexing_threshold_kb: Segments with less vector data than this get no graph; they are compared exhaustively.
        optimize_after: Slices without a graph after which it is built even while requests wait.
        excluded_share_limit: Above this share of excluded slices a search under a scope is exhaustive.
    """

    m: int = 32
    ef_construct: int = 200
    ef_search: int = 256
    segment_count: int = 4
    indexing_threshold_kb: int = 10_000
    optimize_after: int = 16_384
    excluded_share_limit: float = 0.05


class EdgeStore:
    """An archive in one directory.

    Args:
        directory: Where it lies; created if it is not there.
        identity: What it must have been made with.
        settings: How the graph is built and searched.
        create: Make a new archive where there is none.

    Raises:
        StartupError: The archive was made with something else, is open elsewhere, or cannot be read or written.
    """

    def __init__(
        self, directory: Path, identity: ArchiveIdentity, settings: EdgeSettings, *, create: bool = True
    ) -> None:
        self._directory = directory
        self._settings = settings
        self.identity = identity
        self._lock = _lock(directory, create=create)
        try:
            self._shard = _open_shard(directory, identity, settings)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._claim()
            # The live revision of every volume, and the way back: what makes a hit count (see `interface`).
            self._revisions: dict[str, int] = {}
            self._volumes: dict[int, str] = {}
            self._slice_counts: dict[str, int] = {}
            self._slice_count = 0
            self._fingerprint = 0
            for record in self._scroll(filters.kind_is(points.KIND_VOLUME)):
                self._enter(points.record_of(record.payload or {}))
            self._remove_leftovers()
        except BaseException:
            self._shard.close()
            self._lock.release()
            raise
        # At least once: the graph of an archive made with other settings is built anew; others have nothing to do.
        self._unoptimized = max(1, self._unindexed_count())

    def numerics(self) -> Numerics | None:
        """Gives what its vectors are computed with; None for one that has none."""
        if not self._revisions:
            return None
        (archive,) = self._shard.retrieve([points.ARCHIVE_POINT_ID], with_payload=True, with_vector=False)
        return points.numerics_of(archive.payload or {})

    def record_numerics(self, numerics: Numerics) -> None:
        """Writes down what its vectors are computed with, unless that is known already."""
        if self.numerics() is None:
            self._write_identity(numerics)

    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Adds or replaces a volume; see `interface.Archive`."""
        embeddings = slices.embeddings
        # Edge keeps an operation that it refuses in its log, and replays it: nothing wrong may reach it.
        if embeddings.shape != (len(slices.indices), self.identity.dimension) or not np.isfinite(embeddings).all():
            raise ValueError(f"embeddings must be finite, [{len(slices.indices)}, {self.identity.dimension}]")
        for start in range(0, len(slices.indices), _WRITE_CHUNK):
            chunk = slice(start, start + _WRITE_CHUNK)
            self._shard.update(
                edge.UpdateOperation.upsert_points(
                    [
                        edge.Point(
                            points.slice_point_id(record.revision, index),
                            {points.VECTOR: vector},
                            points.slice_payload(record, thumbnail),
                        )
                        for index, vector, thumbnail in zip(
                            slices.indices[chunk],
                            embeddings[chunk].tolist(),
                            slices.thumbnails[chunk],
                            strict=True,
                        )
                    ]
                )
            )
        # The record is the commit: before it the new slices are nobody's, after it the old ones are.
        self._shard.update(
            edge.UpdateOperation.upsert_points(
                [edge.Point(points.record_point_id(record.volume_id), {}, points.record_payload(record))]
            )
        )
        replaced = self._revisions.get(record.volume_id)
        self._enter(record)
        self._unoptimized += len(slices.indices)
        self._shard.flush()
        if replaced is not None:
            self._drop_slices(replaced)
        return replaced is not None

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Takes a volume out; see `interface.Archive`."""
        record = self.records([volume_id]).get(volume_id)
        if record is None:
            return None
        self._shard.update(edge.UpdateOperation.delete_points([points.record_point_id(volume_id)]))
        self._forget(volume_id)
        self._drop_slices(record.revision)
        self._shard.flush()
        return record

    def records(self, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
        """Gives the records of those volumes that are there."""
        known: list[edge.PointId] = [
            points.record_point_id(volume) for volume in volume_ids if volume in self._revisions
        ]
        found = self._shard.retrieve(known, with_payload=True, with_vector=False) if known else []
        records = [points.record_of(record.payload or {}) for record in found]
        return {record.volume_id: record for record in records}

    def list_ids(self, labels: Sequence[tuple[str, tuple[str, ...]]] = ()) -> list[str]:
        """Gives the names of all volumes with these labels, in order."""
        if not labels:
            return sorted(self._revisions)
        conditions: list[edge.ConditionType] = [
            filters.field_is(points.KIND, points.KIND_VOLUME),
            *filters.of_labels(labels),
        ]
        found = self._scroll(edge.Filter(must=conditions), with_payload=[points.VOLUME])
        return sorted((record.payload or {})[points.VOLUME] for record in found)

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return the labels of all volumes, their values, and how many volumes have each."""
        facet = self._shard.facet(
            edge.FacetRequest(key=points.TAGS, limit=_ALL_TAGS, exact=True, filter=filters.kind_is(points.KIND_VOLUME))
        )
        counts: dict[str, dict[str, int]] = {}
        for hit in facet.hits:
            key, _, value = str(hit.value).partition("=")
            counts.setdefault(key, {})[value] = hit.count
        return counts

    def is_empty(self) -> bool:
        """Tells whether there is no volume."""
        return not self._revisions

    def revisions(self) -> dict[str, int]:
        """Gives the revision of every volume."""
        return dict(self._revisions)

    def fingerprint(self) -> int:
        """Gives the exclusive or of all revisions."""
        return self._fingerprint

    def thumbnails(self, record: VolumeRecord, indices: Collection[int]) -> dict[int, bytes]:
        """Gives the thumbnails of those of the slices that have one."""
        ids: list[edge.PointId] = [points.slice_point_id(record.revision, index) for index in indices]
        found = self._shard.retrieve(ids, with_payload=[points.THUMBNAIL], with_vector=False) if ids else []
        pictures = {
            points.split_slice_point_id(int(point.id))[1]: points.thumbnail_of(point.payload or {}) for point in found
        }
        return {index: picture for index, picture in pictures.items() if picture}

    def slices(self, record: VolumeRecord) -> IndexedSlices:
        """Gives the slices with their vectors; see `interface.Archive`."""
        ids = [points.slice_point_id(record.revision, index) for index in record.indexed_slices]
        found = self._shard.retrieve([*ids], with_payload=False, with_vector=True) if ids else []
        vectors = {int(point.id): _vector_of(point) for point in found}
        kept = [point_id for point_id in ids if point_id in vectors]
        return IndexedSlices(
            indices=tuple(points.split_slice_point_id(point_id)[1] for point_id in kept),
            embeddings=np.asarray([vectors[point_id] for point_id in kept], dtype=np.float32).reshape(
                len(kept), self.identity.dimension
            ),
            thumbnails=(b"",) * len(kept),
        )

    def nearest(
        self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING, exact: bool = False
    ) -> Neighbours:
        """Looks up the nearest slices; see `interface.Archive`."""
        exact = exact or self._needs_exact(scope)
        conditions = filters.of_scope(scope)
        hits: list[list[Hit]] = [[] for _ in range(len(queries))]
        pending = list(range(len(queries)))
        limit = neighbours + _TIE_MARGIN
        while pending:
            answers = self._query(queries[pending], limit, conditions, exact)
            unresolved = []
            for row, answer in zip(pending, answers, strict=True):
                hits[row] = self._resolve(answer, neighbours)
                # The last place is tied with one that did not fit any more: only a longer list can tell whose it is.
                if limit < _TIE_LIMIT and len(answer) == limit and answer[-1].score == answer[neighbours - 1].score:
                    unresolved.append(row)
            pending = unresolved
            limit = neighbours + (limit - neighbours) * _TIE_GROWTH
        short = [row for row, found in enumerate(hits) if len(found) < neighbours]
        if short and not exact:
            # The graph ran dry under the scope; what is missing, if anything is, can only be found exhaustively.
            again = self.nearest(queries[short], neighbours=neighbours, scope=scope, exact=True)
            for row, found in zip(short, again.hits, strict=True):
                hits[row] = found
        return Neighbours(hits, exact)

    def rescore(
        self, queries: NDArray[np.float32], candidates: Sequence[Sequence[tuple[int, int]]], *, neighbours: int
    ) -> list[list[Hit]]:
        """Compares every query with its own candidates; see `interface.Archive`."""
        answers = self._shard.query_batch(
            edge.QueryBatchRequest(
                queries=[
                    edge.QueryRequest(
                        query=edge.Query.Nearest(vector, using=points.VECTOR),
                        limit=max(1, len(places)),
                        filter=edge.Filter(
                            must=[edge.HasIdCondition({points.slice_point_id(*place) for place in places})]
                        ),
                        params=edge.SearchParams(exact=True),
                    )
                    for vector, places in zip(queries.tolist(), candidates, strict=True)
                ]
            )
        )
        return [self._resolve(answer, neighbours) for answer in answers]

    def occupancy(self) -> Occupancy:
        """Tells how full the archive is."""
        return Occupancy(
            volume_count=len(self._revisions),
            slice_count=self._slice_count,
            unindexed_slice_count=self._unindexed_count(),
            disk_bytes=sum(512 * path.stat().st_blocks for path in self._directory.rglob("*") if path.is_file()),
        )

    def wants_optimizing(self, *, idle: bool) -> bool:
        """Tells whether the graph should be built now; readily while nobody waits, else only when much is missing."""
        return self._unoptimized > (0 if idle else self._settings.optimize_after)

    def optimize(self) -> None:
        """Builds the graph over what has been added."""
        # Also where it fails: it is tried again after the next ingest, and not in a circle.
        self._unoptimized = 0
        self._shard.optimize()

    def close(self) -> None:
        """Flushes and closes."""
        self._shard.flush()
        self._shard.close()
        self._lock.release()

    def _claim(self) -> None:
        """Checks what the archive was made with, or writes it down in a new one."""
        found = self._shard.retrieve([points.ARCHIVE_POINT_ID], with_payload=True, with_vector=False)
        if found:
            wrong = points.differences(found[0].payload or {}, self.identity)
            if wrong:
                raise StartupError(
                    f"the archive in {self._directory} was made with something else ({'; '.join(wrong)}). Vectors made "
                    "differently do not compare: start with what it was made with, or choose another --data folder and "
                    "ingest again"
                )
            return
        for name in points.KEYWORD_FIELDS:
            self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Keyword))
        for name in points.INTEGER_FIELDS:
            self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Integer))
        self._write_identity(None)

    def _write_identity(self, numerics: Numerics | None) -> None:
        payload = points.identity_payload(self.identity, numerics)
        self._shard.update(edge.UpdateOperation.upsert_points([edge.Point(points.ARCHIVE_POINT_ID, {}, payload)]))
        self._shard.flush()

    def _enter(self, record: VolumeRecord) -> None:
        self._forget(record.volume_id)
        self._revisions[record.volume_id] = record.revision
        self._volumes[record.revision] = record.volume_id
        self._fingerprint ^= record.revision
        self._slice_counts[record.volume_id] = len(record.indexed_slices)
        self._slice_count += len(record.indexed_slices)

    def _forget(self, volume_id: str) -> None:
        revision = self._revisions.pop(volume_id, None)
        if revision is not None:
            del self._volumes[revision]
            self._fingerprint ^= revision
            self._slice_count -= self._slice_counts.pop(volume_id)

    def _remove_leftovers(self) -> None:
        """Removes slices that no record names: what an ingest had written when the process was stopped."""
        facet = self._shard.facet(edge.FacetRequest(key=points.REVISION, limit=points.REVISION_LIMIT, exact=True))
        for hit in facet.hits:
            if int(hit.value) not in self._volumes:
                logger.warning("removing %d slices of an unfinished ingest", hit.count)
                self._drop_slices(int(hit.value))
        self._shard.flush()

    def _drop_slices(self, revision: int) -> None:
        condition = edge.Filter(
            must=[filters.field_is(points.REVISION, revision), filters.field_is(points.KIND, points.KIND_SLICE)]
        )
        self._shard.update(edge.UpdateOperation.delete_points_by_filter(condition))

    def _query(
        self, queries: NDArray[np.float32], limit: int, conditions: edge.Filter | None, exact: bool
    ) -> list[list[edge.ScoredPoint]]:
        parameters = edge.SearchParams(hnsw_ef=max(self._settings.ef_search, limit), exact=exact)
        return self._shard.query_batch(
            edge.QueryBatchRequest(
                queries=[
                    edge.QueryRequest(
                        query=edge.Query.Nearest(vector, using=points.VECTOR),
                        limit=limit,
                        filter=conditions,
                        params=parameters,
                    )
                    for vector in queries.tolist()
                ]
            )
        )

    def _resolve(self, answer: Sequence[edge.ScoredPoint], neighbours: int) -> list[Hit]:
        """Turns points into hits, breaks ties, and leaves out what is nobody's."""
        hits = []
        for point in answer:
            revision, index = points.split_slice_point_id(int(point.id))
            volume = self._volumes.get(revision)
            if volume is not None:
                hits.append(Hit(volume, revision, index, float(point.score)))
        hits.sort(key=lambda hit: (-hit.similarity, hit.volume_id, hit.slice_index))
        return hits[:neighbours]

    def _needs_exact(self, scope: Scope) -> bool:
        """Tells whether the graph could miss under this scope.

        A search in the graph walks over slices that fulfil the scope only. A label can cut the query's whole
        neighbourhood out of it; leaving out a few volumes cannot.
        """
        if scope.labels:
            return True
        excluded = filters.of_exclusions(scope)
        if not excluded:
            return False
        count = self._shard.count(edge.CountRequest(exact=True, filter=edge.Filter(should=list(excluded))))
        return count > self._settings.excluded_share_limit * self._slice_count

    def _unindexed_count(self) -> int:
        return max(0, self._slice_count - self._shard.info().indexed_vectors_count)

    def _scroll(self, condition: edge.Filter, with_payload: bool | list[str] = True) -> list[edge.Record]:
        found: list[edge.Record] = []
        offset: Any = None
        while True:
            page, offset = self._shard.scroll(
                edge.ScrollRequest(offset=offset, limit=_PAGE, filter=condition, with_payload=with_payload)
            )
            found.extend(page)
            if offset is None:
                return found


def _lock(directory: Path, *, create: bool) -> ProcessLock:
    """Take the lock of an archive, before anything of Edge touches it.

    Loading a shard that another process has open deletes that process's journal files. A server holds the lock of its
    data folder, so whoever has this one is on the way out: the archive's process of a server that was killed.
    """
    if create:
        make_writable_folder(directory)
    elif not directory.is_dir() or not any(directory.iterdir()):
        raise StartupError(f"the archive in {directory} is gone; put the folder back, then start the server again")
    try:
        return ProcessLock(directory.with_suffix(".lock"), timeout_s=_LOCK_TIMEOUT_S)
    except LockHeld as error:
        raise StartupError(
            f"the archive in {directory} is still in use by {error.holder}: end that process, then start again"
        ) from error


def _open_shard(directory: Path, identity: ArchiveIdentity, settings: EdgeSettings) -> edge.EdgeShard:
    config = edge.EdgeConfig(
        vectors={points.VECTOR: edge.EdgeVectorParams(size=identity.dimension, distance=edge.Distance.Cosine)},
        hnsw_config=edge.HnswIndexConfig(m=settings.m, ef_construct=settings.ef_construct, full_scan_threshold=1000),
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=settings.segment_count, indexing_threshold=settings.indexing_threshold_kb
        ),
    )
    open_it = edge.EdgeShard.load if any(directory.iterdir()) else edge.EdgeShard.create
    try:
        return open_it(str(directory), config)
    except Exception as error:
        # Edge raises plain exceptions; only their text tells them apart.
        if "failed to open WAL" not in str(error):
            raise StartupError(
                f"the archive in {directory} is damaged ({error}); restore the folder from a backup, or move it away "
                "and ingest again"
            ) from error
        if "WouldBlock" in str(error):
            raise StartupError(
                f"the archive in {directory} is open in a program other than slicevote; close it there, then start "
                "again"
            ) from error
        # Every acknowledged volume was flushed to the segments, so nothing is lost with the journal.
        raise StartupError(
            f"the journal of the archive in {directory} is damaged ({error}). Move the folder {directory / 'wal'} "
            "away and start again: acknowledged volumes are not stored in it"
        ) from error


def _vector_of(point: edge.Record) -> list[float]:
    return cast("dict[str, list[float]]", point.vector)[points.VECTOR]
