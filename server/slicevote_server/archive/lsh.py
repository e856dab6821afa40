"""The FAISS LSH side index: signs of random projections, compared by Hamming distance, as in the paper.

The index is a cache of the archive and can be rebuilt from it. It follows every ingest and deletion. Where it has not
(after a crash, or because another program wrote to the archive), the two no longer agree on which states of volumes
exist; the index notices that and catches up.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import operator
import os
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from slicevote_server.archive.interface import EVERYTHING, Archive, IndexedSlices, Neighbours, Scope, VolumeRecord
from slicevote_server.errors import ArchiveUnavailable
from slicevote_server.voting import Hit

logger = logging.getLogger(__name__)

# FAISS's stubs know the C++ signatures, not the Python ones that wrap them.
faiss: Any = typed_faiss

_FILE = "lsh.npz"
_FORMAT = 2
_SAVE_AFTER_VOLUMES = 500
_SYNC_ROUNDS = 3
_CLOSE_S = 5.0
# Hamming distances are small integers: ties are the rule, and one search should settle most of them.
_TIE_MARGIN = 32
_TIE_GROWTH = 8


@dataclass(frozen=True)
class LshSettings:
    """How the LSH index works.

    Attributes:
        bits: Length of a code; 0 means two bits per dimension.
        rescored_candidates: Number of candidates by Hamming distance that are compared by cosine; 0 means none, as in
            the paper: the nearest code is the hit.
    """

    bits: int = 0
    rescored_candidates: int = 0


@dataclass(frozen=True)
class _Volume:
    """What the index knows of a volume, for scopes."""

    revision: int
    patient_key: str
    study_instance_uid: str
    series_instance_uid: str
    labels: Mapping[str, str]

    def is_in(self, volume_id: str, scope: Scope) -> bool:
        return (
            volume_id not in scope.exclude_volume_ids
            and self.patient_key not in scope.exclude_patient_keys
            and self.study_instance_uid not in scope.exclude_study_instance_uids
            and self.series_instance_uid not in scope.exclude_series_instance_uids
            and all(self.labels.get(key) in values for key, values in scope.labels)
        )


class LshIndex:
    """Codes of all slices of an archive, in memory and in a file.

    Make one with `open`, which reads the file and catches up with the archive.
    """

    def __init__(self, directory: Path, archive: Archive, settings: LshSettings) -> None:
        dimension = archive.identity.dimension
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / _FILE
        self._archive = archive
        self._settings = settings
        # Whole bytes, because that is what codes are compared in.
        self.bits = -(-(settings.bits or 2 * dimension) // 8) * 8
        _keep_to_this_thread()
        self._hasher = faiss.IndexLSH(dimension, self.bits, True, False)
        self._lock = threading.RLock()
        # Code, revision of the volume and index of every slice, at the same place in each of the three.
        self._codes = faiss.IndexBinaryFlat(self.bits)
        self._revisions: NDArray[np.int64] = np.empty(0, np.int64)
        self._slices: NDArray[np.int32] = np.empty(0, np.int32)
        self._volumes: dict[str, _Volume] = {}
        self._names: dict[int, str] = {}
        # The exclusive or of all revisions, to compare with that of the archive.
        self._fingerprint = 0
        self._unsaved = 0

    @classmethod
    def open(cls, directory: Path, archive: Archive, settings: LshSettings | None = None) -> LshIndex:
        """Open the index of an archive, or make it if there is none.

        Args:
            directory: Folder of its file; created if it does not exist.
            archive: The archive.
            settings: How the index works.
        """
        index = cls(directory, archive, settings or LshSettings())
        index._load()
        index.synchronise()
        return index

    @property
    def settings(self) -> LshSettings:
        """How the index works."""
        return self._settings

    @property
    def slice_count(self) -> int:
        """Number of slices in the index."""
        return len(self._revisions)

    @property
    def fingerprint(self) -> int:
        """A number that stands for the states of volumes in the index, like that of the archive; never blocks."""
        return self._fingerprint

    def is_in_step(self) -> bool:
        """Return whether the index holds the states of volumes that the archive holds."""
        with self._lock:
            fingerprint = self._fingerprint
        return fingerprint == self._archive.fingerprint()

    def add(self, record: VolumeRecord, slices: IndexedSlices) -> None:
        """Add a volume, or replace the one of the same name."""
        codes = self._encode(slices.embeddings)
        with self._lock:
            self._forget(record.volume_id)
            self._codes.add(codes)
            count = len(slices.indices)
            self._revisions = np.concatenate([self._revisions, np.full(count, record.revision, np.int64)])
            self._slices = np.concatenate([self._slices, np.asarray(slices.indices, np.int32)])
            self._volumes[record.volume_id] = _Volume(
                record.revision,
                record.patient_key,
                record.study_instance_uid,
                record.series_instance_uid,
                dict(record.labels),
            )
            self._names[record.revision] = record.volume_id
            self._fingerprint ^= record.revision
            self._changed()

    def remove(self, record: VolumeRecord) -> None:
        """Remove a volume."""
        with self._lock:
            self._forget(record.volume_id)
            self._changed()

    def synchronise(self) -> int:
        """Catch up with the archive.

        Returns:
            Number of volumes that had to be added or removed.
        """
        with self._lock:
            wanted = self._archive.revisions()
            held = {name: volume.revision for name, volume in self._volumes.items()}
            superfluous = [name for name, revision in held.items() if wanted.get(name) != revision]
            missing = sorted(name for name, revision in wanted.items() if held.get(name) != revision)
            for name in superfluous:
                self._forget(name)
            for name in missing:
                record = self._archive.records([name]).get(name)
                if record is not None:
                    self.add(record, self._archive.slices(record))
            changes = len({*superfluous, *missing})
            if changes:
                logger.info("the LSH index was %d volumes out of step and has caught up", changes)
                self._unsaved += 1
                self._try_to_save()
            return changes

    def rebuild(self) -> int:
        """Rebuild the index from the archive.

        Returns:
            Number of slices in the index.
        """
        with self._lock:
            for name in list(self._volumes):
                self._forget(name)
            self.synchronise()
            self.save()
            return self.slice_count

    def nearest(self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING) -> Neighbours:
        """Return the nearest slices by Hamming distance of their codes.

        Ties go to the lower volume id, then to the lower slice index. Without rescoring a similarity is
        1 - distance / bits, with it the cosine.

        Args:
            queries: float32 [N, D], unit length.
            neighbours: Hits per query.
            scope: Volumes that may be hit; holds exactly.

        Raises:
            ArchiveUnavailable: The archive changes faster than the index can follow.
        """
        rounds = 0
        while not self.is_in_step():
            if rounds == _SYNC_ROUNDS:
                raise ArchiveUnavailable("the archive changes faster than its LSH index can follow; try again")
            self.synchronise()
            rounds += 1
        wanted = max(neighbours, self._settings.rescored_candidates)
        with self._lock:
            hits = self._nearest_codes(self._encode(queries), wanted, scope)
        if self._settings.rescored_candidates:
            candidates = [[(hit.revision, hit.slice_index) for hit in found] for found in hits]
            hits = self._archive.rescore(queries, candidates, neighbours=neighbours)
        return Neighbours(hits, exact=False)

    def save(self) -> None:
        """Write the file, completely or not at all."""
        with self._lock:
            about = {
                "format": _FORMAT,
                "volumes": {name: dataclasses.asdict(volume) for name, volume in self._volumes.items()},
            }
            scratch = self._file.with_suffix(".part")
            try:
                with scratch.open("wb") as stream:
                    np.savez(
                        stream,
                        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                        probe=self._probe(),
                        codes=faiss.vector_to_array(self._codes.xb).reshape(-1, self.bits // 8),
                        revisions=self._revisions,
                        slices=self._slices,
                    )
                    stream.flush()
                    os.fsync(stream.fileno())
                scratch.replace(self._file)
            finally:
                scratch.unlink(missing_ok=True)
            self._unsaved = 0

    def close(self) -> None:
        """Write what is not written yet, unless the index is busy: the next start catches up."""
        if not self._lock.acquire(timeout=_CLOSE_S):
            return
        try:
            if self._unsaved:
                self._try_to_save()
        finally:
            self._lock.release()

    def _nearest_codes(self, codes: NDArray[np.uint8], wanted: int, scope: Scope) -> list[list[Hit]]:
        parameters, available = self._selection(scope)
        hits: list[list[Hit]] = [[] for _ in codes]
        pending = np.arange(len(codes))
        limit = min(wanted + _TIE_MARGIN, available)
        while len(pending) and available:
            distances, places = self._codes.search(codes[pending], limit, params=parameters)
            unresolved = []
            for row, distance, place in zip(pending.tolist(), distances, places, strict=True):
                found = [self._hit(*pair) for pair in zip(place.tolist(), distance.tolist(), strict=True)]
                found.sort(key=lambda hit: (-hit.similarity, hit.volume_id, hit.slice_index))
                hits[row] = found[:wanted]
                # The last place may be tied with one that did not fit.
                if limit < available and distance[-1] == distance[wanted - 1]:
                    unresolved.append(row)
            pending = np.asarray(unresolved, dtype=np.intp)
            limit = min(limit * _TIE_GROWTH, available)
        return hits

    def _hit(self, place: int, distance: int) -> Hit:
        revision = int(self._revisions[place])
        return Hit(self._names[revision], revision, int(self._slices[place]), 1 - distance / self.bits)

    def _selection(self, scope: Scope) -> tuple[Any, int]:
        """Return search parameters that select a scope, and the number of slices in it."""
        if not scope:
            return None, self.slice_count
        inside = [volume.revision for name, volume in self._volumes.items() if volume.is_in(name, scope)]
        mask = np.isin(self._revisions, inside)
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        return faiss.SearchParameters(sel=selector), int(mask.sum())

    def _encode(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint8]:
        if not len(embeddings):
            return np.empty((0, self.bits // 8), np.uint8)
        _keep_to_this_thread()
        codes: NDArray[np.uint8] = self._hasher.sa_encode(np.ascontiguousarray(embeddings, np.float32))
        return codes

    def _probe(self) -> NDArray[np.uint8]:
        """Return the code of a fixed vector, which tells whether the file was hashed in the same way."""
        generator = np.random.default_rng(0)
        return self._encode(generator.normal(size=(1, self._archive.identity.dimension)).astype(np.float32))

    def _forget(self, volume_id: str) -> None:
        volume = self._volumes.pop(volume_id, None)
        if volume is None:
            return
        del self._names[volume.revision]
        self._fingerprint ^= volume.revision
        places = np.flatnonzero(self._revisions == volume.revision)
        if len(places):
            # The slices of a volume were added together and stay together.
            self._codes.remove_ids(faiss.IDSelectorRange(int(places[0]), int(places[-1]) + 1))
            self._revisions = np.delete(self._revisions, places)
            self._slices = np.delete(self._slices, places)

    def _changed(self) -> None:
        self._unsaved += 1
        # If it fails, it is tried again after as many changes, and when the index is closed.
        if self._unsaved % _SAVE_AFTER_VOLUMES == 0:
            self._try_to_save()

    def _try_to_save(self) -> None:
        try:
            self.save()
        except OSError as error:
            # The archive has every volume; what the file lacks is added when it is next opened.
            logger.warning("the file of the LSH index cannot be written (%s)", error.strerror)

    def _load(self) -> None:
        """Read the file; one that is damaged, or was hashed otherwise, is ignored and the index is rebuilt."""
        stored = _read(self._file)
        if stored is None:
            return
        if not np.array_equal(stored.probe, self._probe()):
            logger.info("the LSH index was made with other settings; it is rebuilt")
            return
        if len(stored.codes):
            self._codes.add(stored.codes)
        self._revisions, self._slices, self._volumes = stored.revisions, stored.slices, dict(stored.volumes)
        self._names = {volume.revision: name for name, volume in stored.volumes.items()}
        self._fingerprint = functools.reduce(operator.xor, self._names, 0)


@dataclass(frozen=True)
class _Stored:
    """Content of an index's file."""

    volumes: Mapping[str, _Volume]
    probe: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    revisions: NDArray[np.int64]
    slices: NDArray[np.int32]


def _read(file: Path) -> _Stored | None:
    """Return the content of a file, or None if there is none of this format."""
    try:
        with np.load(file) as stored:
            about = json.loads(stored["about"].tobytes())
            if about["format"] != _FORMAT:
                return None
            volumes = {name: _Volume(**fields) for name, fields in about["volumes"].items()}
            arrays = [stored[key] for key in ("probe", "codes", "revisions", "slices")]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("the file of the LSH index cannot be read (%s); it is rebuilt", type(error).__name__)
        return None
    return _Stored(volumes, *arrays)


def _keep_to_this_thread() -> None:
    """Keep FAISS to the calling thread (a setting per thread): spinning threads would compete with the backbone."""
    faiss.omp_set_num_threads(1)
