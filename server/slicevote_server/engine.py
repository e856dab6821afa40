"""The engine: all backbones with their archives, and every operation on them.

The gRPC services, the evaluation and the tests drive this object; it knows none of them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from slicevote.contract import VOLUME_UNKNOWN

from slicevote_server.archive.data_folder import DataFolder
from slicevote_server.archive.interface import ArchiveIdentity, ArchiveSettings, VolumeRecord
from slicevote_server.archive.kinds import open_archive
from slicevote_server.archive.lsh import LshIndex, LshSettings
from slicevote_server.backbone import Backbone, check_golden, read_backbone
from slicevote_server.embedding import Embedder
from slicevote_server.errors import NotFound, NotReady, StartupError
from slicevote_server.ingest import Ingest, IngestRequest
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.runtime import DEFAULT_BATCH, RuntimeSettings, open_runtime
from slicevote_server.search import Search, SearchRequest
from slicevote_server.served_backbone import ServedBackbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """How the engine works.

    Attributes:
        policy: How grey values are made of pixels.
        thumbnails: Keep a thumbnail of every slice.
        runtime: What backbones run on.
        batch_size: Most slices that a backbone computes at once.
        archive: How the graph is built and searched.
        lsh: How the LSH side index works; None for a server without it.
    """

    policy: IntensityPolicy = field(default_factory=IntensityPolicy)
    thumbnails: bool = True
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    batch_size: int = DEFAULT_BATCH
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    lsh: LshSettings | None = field(default_factory=LshSettings)


class Engine:
    """Searches and ingests over one data folder.

    Args:
        data: The folder; created if it is not there. It holds one archive for every backbone.
        backbones: ONNX files; the first is the one that is meant where none is named.
        settings: How the engine works.

    Raises:
        StartupError: A backbone, the folder or an archive is not as it should be.
    """

    def __init__(self, data: Path, backbones: Sequence[Path], settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._backbones: dict[str, ServedBackbone] = {}
        # A volume is written to, or taken out of, all archives before the next one is.
        self._writing = threading.Lock()
        # First, so that a wrong file leaves no folder behind.
        described = {path: read_backbone(path) for path in backbones}
        self._folder = DataFolder(data)
        try:
            for path in backbones:
                served = self._open(path, described[path])
                self._backbones[served.backbone.name] = served
            self._refuse_orphans(data)
            if len({served.archive.fingerprint() for served in self.backbones}) > 1:
                logger.warning(
                    "the archives of %s hold different volumes, as after a backbone was added; ingest the volumes "
                    "again, so that every backbone has them all",
                    data,
                )
        except BaseException:
            self.close()
            raise

    @property
    def backbones(self) -> tuple[ServedBackbone, ...]:
        """All backbones with their archives, in the order in which they were given."""
        return tuple(self._backbones.values())

    def backbone(self, backbone: str = "") -> ServedBackbone:
        """Return one backbone with its archive; the first if none is named.

        Raises:
            NotFound: There is no such backbone.
        """
        if not backbone:
            return self.backbones[0]
        if backbone not in self._backbones:
            raise NotFound(
                f"this server has no backbone '{backbone}'; it has {', '.join(self._backbones)}",
                reason="BACKBONE_UNKNOWN",
            )
        return self._backbones[backbone]

    def search(self, request: SearchRequest, backbone: str = "") -> Search:
        """Start a search.

        Raises:
            NotFound: There is no such backbone.
            NotReady: The archive is empty.
        """
        served = self.backbone(backbone)
        if served.archive.is_empty():
            raise NotReady("the archive is empty; ingest volumes, then search", reason="ARCHIVE_EMPTY")
        return Search(request, served, self.settings.policy)

    def ingest(self, request: IngestRequest) -> Ingest:
        """Start an ingest into all archives.

        Raises:
            Overloaded: A disk is full; better said before the slices have been sent and embedded than after.
        """
        for served in self.backbones:
            served.archive.require_room(0)
            if request.patient_key:
                served.require_patient_secret(request.patient_secret_fingerprint)
        return Ingest(
            request, self.backbones, self.settings.policy, thumbnails=self.settings.thumbnails, writing=self._writing
        )

    def record(self, volume_id: str, backbone: str = "") -> VolumeRecord:
        """Return the record of a volume.

        Raises:
            NotFound: There is no such volume, or no such backbone.
        """
        record = self.backbone(backbone).archive.records([volume_id]).get(volume_id)
        if record is None:
            raise _no_such_volume(volume_id)
        return record

    def delete(self, volume_id: str) -> VolumeRecord:
        """Delete a volume from all archives, durably.

        Raises:
            NotFound: There is no such volume.
        """
        with self._writing:
            removed = [served.delete(volume_id) for served in self.backbones]
        for record in removed:
            if record is not None:
                return record
        raise _no_such_volume(volume_id)

    def close(self) -> None:
        """Stop the embedders, close the archives, and release the data folder."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._folder.close)
            for served in self.backbones:
                stack.callback(served.close)

    def _open(self, path: Path, backbone: Backbone) -> ServedBackbone:
        if backbone.name in self._backbones:
            raise StartupError(f"{path}: another file given is the backbone '{backbone.name}', too; give each once")
        identity = archive_identity(backbone, self.settings.policy)
        archive = open_archive(self._folder.archive(backbone.name), identity, self.settings.archive)
        try:
            runtime = open_runtime(
                path,
                backbone.precision,
                self.settings.runtime,
                archive.provenance().numerics,
                batch_size=self.settings.batch_size,
            )
            check_golden(path, backbone, runtime)
            lsh = None
            if self.settings.lsh is not None:
                lsh = LshIndex.open(self._folder.lsh(backbone.name), archive, self.settings.lsh)
        except BaseException:
            archive.close()
            raise
        return ServedBackbone(backbone, Embedder(runtime, batch_size=self.settings.batch_size), archive, lsh)

    def _refuse_orphans(self, data: Path) -> None:
        """Refuse a folder with archives that would not be served: every ingest would let them drift apart."""
        orphans = [name for name in self._folder.backbones() if name not in self._backbones]
        if orphans:
            raise StartupError(
                f"{data} holds archives made with other backbones ({', '.join(orphans)}) than are given "
                f"({', '.join(self._backbones)}). All archives of a folder hold the same volumes: give those "
                "backbones, too, or choose another --data folder, or remove the archive's folder to give it up"
            )


def archive_identity(backbone: Backbone, policy: IntensityPolicy) -> ArchiveIdentity:
    """Return the identity of an archive of this backbone under this policy."""
    return ArchiveIdentity(
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        dimension=backbone.dimension,
        precision=backbone.precision,
        intensity_policy={
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(policy).items()
        },
    )


def _no_such_volume(volume_id: str) -> NotFound:
    return NotFound(f"there is no volume '{volume_id}' in the archive", reason=VOLUME_UNKNOWN)
