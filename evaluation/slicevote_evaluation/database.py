"""The database that is searched: the engine's archive, brought to hold the database volumes and no others."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from slicevote_server.archive.interface import VolumeRecord
from slicevote_server.archive.points import REVISION_LIMIT
from slicevote_server.served_backbone import ServedBackbone

from slicevote_evaluation.datasets import Case
from slicevote_evaluation.embeddings import CaseContents, EmbeddingStore
from slicevote_evaluation.published import MODALITY


class Database:
    """Fills an archive and its side index.

    The revision of a volume is a hash of its content, so that volumes left by an earlier run are recognised.

    Args:
        served: The backbone and its archive.
        store: Where the embeddings come from.
    """

    def __init__(self, served: ServedBackbone, store: EmbeddingStore) -> None:
        self._served = served
        self._store = store
        self._surplus = served.archive.revisions()

    def add(self, case: Case, contents: CaseContents) -> None:
        """Add the volumes of a case, unless the archive holds them already or the case is a query only.

        May be called from several threads.
        """
        if not case.is_database:
            return
        for ordinal, (volume_id, volume) in enumerate(zip(volume_ids(case, contents), contents.volumes, strict=True)):
            parts = json.dumps([volume_id, case.key, sorted(case.labels.items()), len(volume.indices)])
            digest = hashlib.sha256(parts.encode()).digest()
            revision = 1 + int.from_bytes(digest[:8]) % (REVISION_LIMIT - 1)
            if self._surplus.pop(volume_id, None) == revision:
                continue
            record = VolumeRecord(
                volume_id=volume_id,
                modality=case.labels[MODALITY],
                labels={level: label for level, label in case.labels.items() if label},
                patient_key="",
                source="",
                study_instance_uid="",
                series_instance_uid="",
                positions_mm=volume.positions_mm,
                indexed_slices=volume.indices,
                sop_instance_uids=("",) * len(volume.indices),
                blank_slice_count=volume.blank_count,
                ingested_at=datetime.now(UTC),
                revision=revision,
            )
            self._served.put(record, self._store.load(case.key)[ordinal])

    def complete(self) -> None:
        """Delete every volume that was not added, and build the graph."""
        for volume_id in sorted(self._surplus):
            self._served.delete(volume_id)
        self._served.archive.optimize()


def volume_ids(case: Case, contents: CaseContents) -> list[str]:
    """Return the ids of the volumes of a case."""
    count = len(contents.volumes)
    return [case.name] if count == 1 else [f"{case.name}:{ordinal}" for ordinal in range(count)]
