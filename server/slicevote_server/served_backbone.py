"""A backbone as the server runs it: its embedder, its archive and the archive's side index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from slicevote.contract import PATIENT_SECRET_DIFFERS

from slicevote_server.archive.interface import (
    EVERYTHING,
    Archive,
    Index,
    IndexedSlices,
    Neighbours,
    Provenance,
    Scope,
    VolumeRecord,
)
from slicevote_server.archive.lsh import LshIndex
from slicevote_server.backbone import Backbone
from slicevote_server.embedding import Embedder
from slicevote_server.errors import NotReady


@dataclass(frozen=True)
class ServedBackbone:
    """A backbone with everything that was embedded with it."""

    backbone: Backbone
    embedder: Embedder
    archive: Archive
    lsh: LshIndex | None = None

    def require_patient_secret(self, fingerprint: str) -> None:
        """Check the secret that a patient key was made with.

        Args:
            fingerprint: Fingerprint of the secret, 16 hexadecimal digits; empty if the client did not name it.

        Raises:
            NotReady: The archive's patient keys were made with another secret.
        """
        kept = self.archive.provenance().patient_secret_fingerprint
        if fingerprint and kept and fingerprint != kept:
            raise NotReady(
                f"the patient key was made with another secret (fingerprint {fingerprint}) than those in the archive "
                f"({kept}), so the two cannot be compared; use the secret that the archive was filled with",
                reason=PATIENT_SECRET_DIFFERS,
            )

    def put(self, record: VolumeRecord, slices: IndexedSlices, *, patient_secret_fingerprint: str = "") -> bool:
        """Add or replace a volume in the archive, durably, and in the side index.

        To be called by one thread at a time.

        Args:
            record: The volume.
            slices: Its indexed slices.
            patient_secret_fingerprint: Fingerprint of the secret of its patient key, if it has one.

        Returns:
            Whether an earlier one was replaced.

        Raises:
            NotReady: The archive's patient keys were made with another secret.
        """
        fingerprint = patient_secret_fingerprint if record.patient_key else ""
        self.require_patient_secret(fingerprint)
        # Recorded with the first volume: an archive without any is not bound to anything yet.
        self.archive.record_provenance(Provenance(self.embedder.numerics, fingerprint))
        replaced = self.archive.put(record, slices)
        if self.lsh is not None:
            self.lsh.add(record, slices)
        return replaced

    def delete(self, volume_id: str) -> VolumeRecord | None:
        """Remove a volume from the archive, durably, and from the side index; return its record if there was one."""
        record = self.archive.delete(volume_id)
        if record is not None and self.lsh is not None:
            self.lsh.remove(record)
        return record

    def nearest(
        self, queries: NDArray[np.float32], *, index: Index, neighbours: int = 1, scope: Scope = EVERYTHING
    ) -> Neighbours:
        """Return the nearest slices by one of the indexes.

        Raises:
            NotReady: There is no such index.
        """
        if index is not Index.LSH:
            return self.archive.nearest(queries, neighbours=neighbours, scope=scope, exact=index is Index.EXACT)
        if self.lsh is None:
            raise NotReady("this server was started without the LSH index (--no-lsh)", reason="LSH_NOT_THERE")
        return self.lsh.nearest(queries, neighbours=neighbours, scope=scope)

    def close(self) -> None:
        """Stop the embedder and close the archive and its side index."""
        self.embedder.close()
        try:
            if self.lsh is not None:
                self.lsh.close()
        finally:
            self.archive.close()
