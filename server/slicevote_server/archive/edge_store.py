"""A Qdrant Edge shard as an archive, for one process and one thread.

`EdgeStore` runs inside the worker process (see `worker`): Edge holds the interpreter lock during every call, so nothing
else may run there. Its methods are those of `interface.Archive`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from slicevote_server.archive import filters, points
from slicevote_server.archive.catalogue import Catalogue
from slicevote_server.archive.edge_shard import lock_archive, open_shard
from slicevote_server.archive.interface import (
    EVERYTHING,
    ArchiveIdentity,
    ArchiveSettings,
    IndexedSlices,
    LabelConditions,
    Neighbours,
    Occupancy,
    Page,
    Provenance,
    Scope,
    VolumeRecord,
)
from slicevote_server.archive.worker import writes
from slicevote_server.errors import StartupError
from slicevote_server.voting import Hit

logger = logging.getLogger(__name__)

_WRITE_CHUNK = 512
_PAGE = 1000
# Places beyond those requested that are looked at for ties; more only where these do not settle it.
_TIE_MARGIN = 1
_TIE_GROWTH = 8
_TIE_LIMIT = 4096


class EdgeStore:
    """An archive in one folder.

    Args:
        directory: The folder.
        identity: What the archive must have been made for. None opens an existing archive whatever it was made for, and
            leaves its graph as it is.
        settings: How the graph is built and searched.
        create: Make a new archive if there is none; needs an identity.

    Raises:
        StartupError: The archive was made for something else, is in use, or cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        identity: ArchiveIdentity | None,
        settings: ArchiveSettings,
        *,
        create: bool = True,
    ) -> None:
        self._directory = directory
        self._settings = settings
        # Which revisions count; see `interface`.
        self._catalogue = Catalogue()
        with contextlib.ExitStack() as undo:
            lock = lock_archive(directory, create=create)
            undo.callback(lock.release)
            self._shard = open_shard(directory, identity, settings)
            undo.callback(self._shard.close)
            self._identity = self._claim(identity)
            for record in self._scroll(filters.kind_is(points.KIND_VOLUME)):
                self._catalogue.enter(points.record_of(record.payload or {}))
            self._remove_leftovers()
            self._unoptimized = self._unindexed_count()
            if identity is not None:
                # At least once: the graph of an archive made with other settings is rebuilt; otherwise nothing happens.
                self._unoptimized = max(1, self._unoptimized)
            self._closing = undo.pop_all()

    def made_for(self) -> ArchiveIdentity:
        """Return what the archive was made for."""
        return self._identity

    def provenance(self) -> Provenance:
        """Return what the volumes were made with; see `interface.Archive`."""
        if not self._catalogue:
            return Provenance()
        (archive,) = self._shard.retrieve([points.ARCHIVE_POINT_ID], with_payload=True, with_vector=False)
        recorded = points.provenance_of(archive.payload or {})
        return recorded if self._catalogue.keyed_count else Provenance(recorded.numerics)

    @writes
    def record_provenance(self, provenance: Provenance) -> None:
        """Record what the volumes are made with; see `interface.Archive`."""
        known = self.provenance()
        completed = known.completed_by(provenance)
        if completed != known:
            self._write_identity(self._identity, completed)

    @writes
    def put(self, record: VolumeRecord, slices: IndexedSlices) -> bool:
        """Add or replace a volume; see `interface.Archive`."""
        # Edge keeps an operation that it refuses in its journal, and replays it: nothing wrong may reach it.
        slices.require_dimension(self._identity.dimension)
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
                            slices.embeddings[chunk].tolist(),
                            slices.thumbnails[chunk],
                            strict=True,
                        )
                    ]
                )
            )
        # Writing the record commits: before it no search returns the new slices, after it none returns the old ones.
        self._shard.update(
            edge.UpdateOperation.upsert_points(
                [edge.Point(points.record_point_id(record.volume_id), {}, points.record_payload(record))]
            )
        )
        replaced = self._catalogue.revision_of(record.volume_id)
        self._catalogue.enter(record)
        self._unoptimized += len(slices.indices)
        self._shard.flush()
        if replaced is not None:
            self._drop_slices(replaced)
        return replaced is not None

    @writes
    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Remove a volume; see `interface.Archive`."""
        record = self.records([volume_id]).get(volume_id)
        if record is None:
            return None
        self._shard.update(edge.UpdateOperation.delete_points([points.record_point_id(volume_id)]))
        self._catalogue.forget(volume_id)
        self._drop_slices(record.revision)
        self._shard.flush()
        return record

    def records(self, volume_ids: Collection[str]) -> dict[str, VolumeRecord]:
        """Return the records of those of the volumes that exist."""
        known: list[edge.PointId] = [points.record_point_id(name) for name in volume_ids if name in self._catalogue]
        found = self._shard.retrieve(known, with_payload=True, with_vector=False) if known else []
        records = [points.record_of(record.payload or {}) for record in found]
        return {record.volume_id: record for record in records}

    def list_ids(self, labels: LabelConditions = (), *, prefix: str = "", after: str = "", limit: int) -> Page:
        """Return a page of volume ids; see `interface.Archive`."""
        return self._catalogue.page(tuple(labels), prefix=prefix, after=after, limit=limit)

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return the labels of all volumes, their values, and how many volumes have each."""
        return self._catalogue.label_counts()

    def is_empty(self) -> bool:
        """Return whether the archive has no volumes."""
        return not self._catalogue

    def revisions(self) -> dict[str, int]:
        """Return the revision of every volume, by volume id."""
        return self._catalogue.revisions()

    def fingerprint(self) -> int:
        """Return the exclusive or of all revisions."""
        return self._catalogue.fingerprint

    def thumbnails(self, record: VolumeRecord, indices: Collection[int]) -> dict[int, bytes]:
        """Return the thumbnails of those of the slices that have one."""
        ids: list[edge.PointId] = [points.slice_point_id(record.revision, index) for index in indices]
        found = self._shard.retrieve(ids, with_payload=[points.THUMBNAIL], with_vector=False) if ids else []
        pictures = {
            points.split_slice_point_id(int(point.id))[1]: points.thumbnail_of(point.payload or {}) for point in found
        }
        return {index: picture for index, picture in pictures.items() if picture}

    def slices(self, record: VolumeRecord) -> IndexedSlices:
        """Return the slices with their vectors; see `interface.Archive`."""
        ids = [points.slice_point_id(record.revision, index) for index in record.indexed_slices]
        found = self._shard.retrieve([*ids], with_payload=False, with_vector=True) if ids else []
        vectors = {int(point.id): _vector_of(point) for point in found}
        kept = [point_id for point_id in ids if point_id in vectors]
        return IndexedSlices(
            indices=tuple(points.split_slice_point_id(point_id)[1] for point_id in kept),
            embeddings=np.asarray([vectors[point_id] for point_id in kept], dtype=np.float32).reshape(
                len(kept), self._identity.dimension
            ),
            thumbnails=(b"",) * len(kept),
        )

    def nearest(
        self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING, exact: bool = False
    ) -> Neighbours:
        """Return the nearest slices; see `interface.Archive`."""
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
                # The last place is tied with one that did not fit: only a longer list can tell which comes first.
                if limit < _TIE_LIMIT and len(answer) == limit and answer[-1].score == answer[neighbours - 1].score:
                    unresolved.append(row)
            pending = unresolved
            limit = neighbours + (limit - neighbours) * _TIE_GROWTH
        short = [row for row, found in enumerate(hits) if len(found) < neighbours]
        if short and not exact:
            # The graph ran out of candidates under the scope; what is missing can only be found exhaustively.
            again = self.nearest(queries[short], neighbours=neighbours, scope=scope, exact=True)
            for row, found in zip(short, again.hits, strict=True):
                hits[row] = found
        return Neighbours(hits, exact)

    def rescore(
        self, queries: NDArray[np.float32], candidates: Sequence[Sequence[tuple[int, int]]], *, neighbours: int
    ) -> list[list[Hit]]:
        """Compare every query with its own candidates; see `interface.Archive`."""
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
        """Return how full the archive is."""
        return Occupancy(
            volume_count=len(self._catalogue),
            slice_count=self._catalogue.slice_count,
            unindexed_slice_count=self._unindexed_count(),
            disk_bytes=sum(512 * path.stat().st_blocks for path in self._directory.rglob("*") if path.is_file()),
        )

    def wants_optimizing(self, *, idle: bool) -> bool:
        """Return whether the graph should be built now: when idle for any missing slice, else only for many."""
        return self._unoptimized > (0 if idle else self._settings.optimize_after)

    def optimize(self) -> None:
        """Build the graph over what has been added."""
        # Reset even if it fails: it is tried again after the next ingest, and not in a loop.
        self._unoptimized = 0
        self._shard.optimize()

    def close(self) -> None:
        """Flush, close, and release the archive's lock."""
        with self._closing:
            self._shard.flush()

    def _claim(self, identity: ArchiveIdentity | None) -> ArchiveIdentity:
        """Check what the archive was made for, or record it in a new one."""
        found = self._shard.retrieve([points.ARCHIVE_POINT_ID], with_payload=True, with_vector=False)
        if not found:
            if identity is None:
                raise StartupError(f"the folder {self._directory} holds no archive of slicevote")
            for name in points.KEYWORD_FIELDS:
                self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Keyword))
            for name in points.INTEGER_FIELDS:
                self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Integer))
            self._write_identity(identity, Provenance())
            return identity
        payload = found[0].payload or {}
        version = points.layout_version_of(payload)
        if version != points.LAYOUT_VERSION:
            raise StartupError(
                f"the archive in {self._directory} was made by another version of slicevote (layout {version}; this "
                f"version reads layout {points.LAYOUT_VERSION}): move the folder away and ingest again"
            )
        recorded = points.identity_of(payload)
        if identity is not None and recorded != identity:
            raise StartupError(
                f"the archive in {self._directory} was made with something else "
                f"({'; '.join(points.differences(recorded, identity))}). Vectors made differently do not compare: "
                "start with what it was made with, or choose another --data folder and ingest again"
            )
        return recorded

    def _write_identity(self, identity: ArchiveIdentity, provenance: Provenance) -> None:
        payload = points.archive_payload(identity, provenance)
        self._shard.update(edge.UpdateOperation.upsert_points([edge.Point(points.ARCHIVE_POINT_ID, {}, payload)]))
        self._shard.flush()

    def _remove_leftovers(self) -> None:
        """Remove slices that no record names: what an ingest had written when the process was stopped."""
        facet = self._shard.facet(edge.FacetRequest(key=points.REVISION, limit=points.REVISION_LIMIT, exact=True))
        for hit in facet.hits:
            if self._catalogue.volume_of(int(hit.value)) is None:
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
        """Turn points into hits, break ties, and leave out slices that belong to no volume."""
        hits = []
        for point in answer:
            revision, index = points.split_slice_point_id(int(point.id))
            name = self._catalogue.volume_of(revision)
            if name is not None:
                hits.append(Hit(name, revision, index, float(point.score)))
        hits.sort(key=lambda hit: (-hit.similarity, hit.volume_id, hit.slice_index))
        return hits[:neighbours]

    def _needs_exact(self, scope: Scope) -> bool:
        """Return whether the graph could miss under this scope.

        A search in the graph visits only slices that satisfy the scope. A label can cut the query's whole neighbourhood
        out of it; leaving out a few volumes cannot.
        """
        if scope.labels:
            return True
        excluded = filters.of_exclusions(scope)
        if not excluded:
            return False
        count = self._shard.count(edge.CountRequest(exact=True, filter=edge.Filter(should=list(excluded))))
        return count > self._settings.excluded_share_limit * self._catalogue.slice_count

    def _unindexed_count(self) -> int:
        return max(0, self._catalogue.slice_count - self._shard.info().indexed_vectors_count)

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


def _vector_of(point: edge.Record) -> list[float]:
    return cast("dict[str, list[float]]", point.vector)[points.VECTOR]
