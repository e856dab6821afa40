"""The evaluation with one backbone: embed, look up, vote."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from slicevote_volumes import Problem

from slicevote_server.archive.interface import ArchiveIdentity, ArchiveSettings, Index
from slicevote_server.archive.lsh import LshSettings
from slicevote_server.backbone import Backbone, check_golden, read_backbone
from slicevote_server.engine import archive_identity
from slicevote_server.evaluation.database import Database
from slicevote_server.evaluation.datasets import Dataset
from slicevote_server.evaluation.embedding_pass import embed_sources
from slicevote_server.evaluation.hits import HitTables, LookUp
from slicevote_server.evaluation.outcomes import Outcomes
from slicevote_server.evaluation.progress import Reporter
from slicevote_server.evaluation.schemes import Scheme, all_schemes
from slicevote_server.evaluation.store import EmbeddingStore, HitStore, VolumeSlices
from slicevote_server.evaluation.timing import BareEmbedding, Times
from slicevote_server.evaluation.voting_pass import vote_all
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.runtime import DEFAULT_BATCH, Numerics, Runtime, RuntimeSettings, open_runtime
from slicevote_server.voting import DEFAULT_SIGMA


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is done.

    Attributes:
        indexes: Where slices are looked up.
        sigma: Width of the Gaussian of the weighted column, as a fraction of the volume.
        seed: Of the random samplings.
        policy: How grey values are made of pixels.
        runtime: How backbones run.
        providers: What backbones run on; several are compared. By default ONNX Runtime on the processor, so that
            tables do not depend on the machine.
        batch_size: Slices that are embedded at once.
        edge: How the graph is built and searched.
        lsh: How the LSH index works.
    """

    indexes: tuple[Index, ...] = (Index.HNSW, Index.LSH, Index.EXACT)
    sigma: float = DEFAULT_SIGMA
    seed: int = 0
    policy: IntensityPolicy = field(default_factory=IntensityPolicy)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    providers: tuple[str, ...] = ("cpu",)
    batch_size: int = DEFAULT_BATCH
    edge: ArchiveSettings = field(default_factory=ArchiveSettings)
    lsh: LshSettings = field(default_factory=LshSettings)

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The columns of the tables."""
        return all_schemes(sigma=self.sigma, seed=self.seed)


@dataclass(frozen=True)
class BackboneResult:
    """What one backbone gave.

    Attributes:
        name: What the tables call it: the backbone's name, and where several numerics are compared their precision.
        backbone: Which.
        numerics: How it was computed.
        volumes: The volumes of every source that could be read, by its name.
        problems: What could not be used.
        outcomes: What the cases found.
        times: Where the time went.
        wall_s: Duration of everything but loading the backbone and measuring it alone.
        bare: The measurement of the backbone alone.
    """

    name: str
    backbone: Backbone
    numerics: Numerics
    volumes: Mapping[str, tuple[VolumeSlices, ...]]
    problems: tuple[Problem, ...]
    outcomes: Outcomes
    times: Times
    wall_s: float
    bare: BareEmbedding


def open_backbone(path: Path, settings: EvaluationSettings, provider: str) -> tuple[Backbone, Runtime]:
    """Loads a backbone and checks it.

    Raises:
        StartupError: It is none, or does not compute what it should.
    """
    backbone = read_backbone(path)
    runtime = open_runtime(path, backbone.precision, replace(settings.runtime, provider=provider))
    check_golden(path, backbone, runtime)
    return backbone, runtime


def evaluate_backbone(
    name: str,
    dataset: Dataset,
    backbone: Backbone,
    runtime: Runtime,
    settings: EvaluationSettings,
    work: Path,
    reporter: Reporter,
) -> BackboneResult:
    """Embeds every slice once, looks every query slice up once in every index, and lets all columns vote.

    Args:
        name: What the tables call it.
        dataset: What is evaluated.
        backbone: With what.
        runtime: Computes it.
        settings: How.
        work: Folder of what is kept between runs.
        reporter: Is told how far it is.

    Raises:
        StartupError: The work folder cannot be used.
        ArchiveUnavailable: The archive's engine stopped; running again goes on from there.
    """
    started = time.perf_counter()
    times, bare = Times(), BareEmbedding(runtime)
    identity = archive_identity(backbone, settings.policy)
    folder = work / f"{backbone.name}-{_identity_digest(identity, runtime.numerics)}"
    mode = "leave-one-patient-out" if dataset.leave_one_patient_out else "split"
    store = EmbeddingStore(folder / "embeddings")
    lsh = settings.lsh if Index.LSH in settings.indexes else None
    with Database(folder / mode, identity, runtime.numerics, store, lsh, settings.edge, times) as database:
        volumes, problems = embed_sources(
            dataset.sources,
            backbone,
            runtime,
            store,
            database,
            settings.policy,
            settings.batch_size,
            times,
            bare,
            reporter,
        )
        database.complete()
        outcomes = Outcomes()
        tables = _tables(database, settings, HitStore(folder / "hits"), times)
        title = f"searching with {name}"
        vote_all(dataset, volumes, store, tables, settings.schemes, outcomes, times, reporter, title)
    wall_s = time.perf_counter() - started - bare.seconds
    return BackboneResult(name, backbone, runtime.numerics, volumes, tuple(problems), outcomes, times, wall_s, bare)


def _tables(database: Database, settings: EvaluationSettings, store: HitStore, times: Times) -> tuple[HitTables, ...]:
    archive, lsh = database.archive, database.lsh
    ways: dict[Index, tuple[LookUp, Mapping[str, object]]] = {
        Index.HNSW: (
            lambda queries, scope, neighbours: archive.nearest(queries, neighbours=neighbours, scope=scope),
            asdict(settings.edge),
        ),
        Index.EXACT: (
            lambda queries, scope, neighbours: archive.nearest(queries, neighbours=neighbours, scope=scope, exact=True),
            {},
        ),
    }
    if lsh is not None:
        ways[Index.LSH] = (
            lambda queries, scope, neighbours: lsh.nearest(queries, neighbours=neighbours, scope=scope),
            {**asdict(settings.lsh), "bits": lsh.bits},
        )
    return tuple(
        HitTables(index.name, ways[index][0], ways[index][1], database.revisions, store, times)
        for index in settings.indexes
    )


def _identity_digest(identity: ArchiveIdentity, numerics: Numerics) -> str:
    """Stands for everything that vectors depend on beside the pixels."""
    parts = json.dumps([asdict(identity), numerics.as_mapping()], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:12]
