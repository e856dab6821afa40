"""The FAISS LSH side index: signs of random projections, compared by Hamming distance, as in the paper.

It is built from the archive and rebuildable from it, never the truth. It follows every ingest and delete; where it
has not (after a crash, or because somebody else wrote to the archive) it notices, because the two no longer agree on
which volume states exist, and catches up with what is missing.
"""

from __future__ import annotations

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
_FORMAT = 1
_SAVE_AFTER_VOLUMES = 500
_SYNC_ROUNDS = 3
_CLOSE_S = 5.0
# Hamming distances are small integers: ties are the rule, and one look should settle most of them.
_TIE_MARGIN = 32
_TIE_GROWTH = 8


@dataclass(frozen=True)
class LshSettings:
    """How the LSH index works.

    Attributes:
        bits: Length of a code; 0 means two bits a dimension.
        rescored_candidates: How many candidates by Hamming distance are compared by cosine; 0 means none, as in the
            paper: the nearest code is the hit.
    """

    bits: int = 0
    rescored_candidates: int = 0


@dataclass(frozen=True)
class _Volume:
    """What the index knows of a volume, for scopes."""

    revision: int
    patient_key: str
    labels: Mapping[str, str]

    def is_in(self, volume_id: str, scope: Scope) -> bool:
        return (
            volume_id not in scope.exclude_volume_ids
            and not (self.patient_key and self.patient_key in scope.exclude_patient_keys)
            and all(self.labels.get(key) in values for key, values in scope.labels)
        )


class LshIndex:
    """Codes of all slices of an archive, in memory and in a file.

    Use `open`, which reads the file and catches up with the archive.
    """

    def __init__(self, directory: Path, archive: Archive, settings: LshSettings) -> None:
        dimension = archive.identity.dimension
        self._file = directory / _FILE
        self._archive = archive
        self._settings = settings
        # Whole bytes, because that is what codes are compared in.
        self.bits = -(-(settings.bits or 2 * dimension) // 8) * 8
        _keep_to_this_thread()
        self._hasher = faiss.IndexLSH(dimension, self.bits, True, False)
        self._lock = threading.RLock()
        # Places in the three run alike: the code, the volume's revision and the index of every slice.
        self._codes = faiss.IndexBinaryFlat(self.bits)
        self._revisions: NDArray[np.int64] = np.empty(0, np.int64)
        self._slices: NDArray[np.int32] = np.empty(0, np.int32)
        self._volumes: dict[str, _Volume] = {}
        self._names: dict[int, str] = {}
        # The exclusive or of all revisions, to compare with the archive's.
        self._fingerprint = 0
        self._unsaved = 0

    @classmethod
    def open(cls, directory: Path, archive: Archive, settings: LshSettings | None = None) -> LshIndex:
        """Opens the index of an archive; makes it where there is none.

        Args:
            directory: Where its file lies; created if it is not there.
            archive: What it is an index of.
            settings: How it works.
        """
        index = cls(directory, archive, settings or LshSettings())
        directory.mkdir(parents=True, exist_ok=True)
        index._load()
        index.synchronise()
        return index

    @property
    def settings(self) -> LshSettings:
        """How it works."""
        return self._settings

    @property
    def slice_count(self) -> int:
        """Slices that it holds."""
        return len(self._revisions)

    @property
    def fingerprint(self) -> int:
        """A number that stands for the volume states that it holds, as the archive has one; waits for nobody."""
        return self._fingerprint

    def is_in_step(self) -> bool:
        """Tells whether it holds the volume states that the archive holds."""
        with self._lock:
            fingerprint = self._fingerprint
        return fingerprint == self._archive.fingerprint()

    def add(self, record: VolumeRecord, slices: IndexedSlices) -> None:
        """Enters a volume, in place of any of the same name."""
        codes = self._encode(slices.embeddings)
        with self._lock:
            self._forget(record.volume_id)
            self._codes.add(codes)
            count = len(slices.indices)
            self._revisions = np.concatenate([self._revisions, np.full(count, record.revision, np.int64)])
            self._slices = np.concatenate([self._slices, np.asarray(slices.indices, np.int32)])
            self._volumes[record.volume_id] = _Volume(record.revision, record.patient_key, dict(record.labels))
            self._names[record.revision] = record.volume_id
            self._fingerprint ^= record.revision
            self._changed()

    def remove(self, record: VolumeRecord) -> None:
        """Takes a volume out."""
        with self._lock:
            self._forget(record.volume_id)
            self._changed()

    def synchronise(self) -> int:
        """Catches up with the archive.

        Returns:
            How many volumes had to be entered or taken out.
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
        """Makes it anew from the archive.

        Returns:
            How many slices it holds.
        """
        with self._lock:
            for name in list(self._volumes):
                self._forget(name)
            self.synchronise()
            self.save()
            return self.slice_count

    def nearest(self, queries: NDArray[np.float32], *, neighbours: int = 1, scope: Scope = EVERYTHING) -> Neighbours:
        """Looks up the nearest slices by Hamming distance of their codes.

        Ties go to the lower volume id, then to the lower slice index. Without rescoring a similarity is
        1 - distance / bits, with it the cosine.

        Args:
            queries: float32 [N, D], unit length.
            neighbours: Hits wanted for every query.
            scope: Which volumes may be hit; holds exactly.

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
        """Writes the file, whole or not at all."""
        with self._lock:
            about = {
                "format": _FORMAT,
                "volumes": {
                    name: [volume.revision, volume.patient_key, dict(volume.labels)]
                    for name, volume in self._volumes.items()
                },
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
        """Writes what is not written yet, unless somebody is at work with the index: it can be made good later."""
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
                # The last place may be tied with one that did not fit any more.
                if limit < available and distance[-1] == distance[wanted - 1]:
                    unresolved.append(row)
            pending = np.asarray(unresolved, dtype=np.intp)
            limit = min(limit * _TIE_GROWTH, available)
        return hits

    def _hit(self, place: int, distance: int) -> Hit:
        revision = int(self._revisions[place])
        return Hit(self._names[revision], revision, int(self._slices[place]), 1 - distance / self.bits)

    def _selection(self, scope: Scope) -> tuple[Any, int]:
        """Gives search parameters that select a scope, and how many slices it holds."""
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
        """Gives the code of a fixed vector: another hashing than the file's is noticed by it."""
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
            # A volume's slices were entered together and stay together.
            self._codes.remove_ids(faiss.IDSelectorRange(int(places[0]), int(places[-1]) + 1))
            self._revisions = np.delete(self._revisions, places)
            self._slices = np.delete(self._slices, places)

    def _changed(self) -> None:
        self._unsaved += 1
        # Where it fails it is tried again at the same distance, and when the index is closed.
        if self._unsaved % _SAVE_AFTER_VOLUMES == 0:
            self._try_to_save()

    def _try_to_save(self) -> None:
        try:
            self.save()
        except OSError as error:
            # The archive has every volume; what the file lacks is made good when it is opened.
            logger.warning("the file of the LSH index cannot be written (%s)", error.strerror)

    def _load(self) -> None:
        """Reads the file; one that is damaged or was hashed otherwise is as good as none."""
        if not self._file.exists():
            return
        try:
            with np.load(self._file) as stored:
                about = json.loads(stored["about"].tobytes())
                if about["format"] != _FORMAT or not np.array_equal(stored["probe"], self._probe()):
                    logger.info("the LSH index was made with other settings; it is built anew")
                    return
                codes, revisions, slices = stored["codes"], stored["revisions"], stored["slices"]
                volumes = {name: _Volume(*fields) for name, fields in about["volumes"].items()}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("the file of the LSH index cannot be read (%s); it is built anew", type(error).__name__)
            return
        if len(codes):
            self._codes.add(codes)
        self._revisions, self._slices, self._volumes = revisions, slices, volumes
        self._names = {volume.revision: name for name, volume in volumes.items()}
        self._fingerprint = functools.reduce(operator.xor, self._names, 0)


def _keep_to_this_thread() -> None:
    """Keeps FAISS to the calling thread, for which alone this holds: a team that spins would fight the backbone's."""
    faiss.omp_set_num_threads(1)
