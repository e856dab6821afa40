"""Embeds every slice once: what an earlier run left is taken, the rest is read, embedded and kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Problem

from slicevote_server.backbone import Backbone
from slicevote_server.evaluation.database import Database
from slicevote_server.evaluation.datasets import Source
from slicevote_server.evaluation.progress import Reporter
from slicevote_server.evaluation.reading import Finished, Reader
from slicevote_server.evaluation.store import Contents, Embedded, EmbeddingStore, VolumeSlices
from slicevote_server.evaluation.timing import BareEmbedding, Times
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.runtime import Runtime


def embed_sources(
    sources: Sequence[Source],
    backbone: Backbone,
    runtime: Runtime,
    store: EmbeddingStore,
    database: Database,
    policy: IntensityPolicy,
    batch_size: int,
    times: Times,
    bare: BareEmbedding,
    reporter: Reporter,
) -> tuple[dict[str, tuple[VolumeSlices, ...]], list[Problem]]:
    """Embeds what the store does not hold, and gives database volumes to the archive as soon as they are there.

    Args:
        sources: What is embedded.
        backbone: With what.
        runtime: Computes it.
        store: Keeps the embeddings.
        database: Takes the volumes of sources that can be found.
        policy: How grey values are made of pixels.
        batch_size: Slices that are embedded at once.
        times: Where the time is written down.
        bare: Measures the backbone alone, now and then.
        reporter: Is told how far it is.

    Returns:
        The volumes of every source that could be read, by its name; and what could not be used.
    """
    there: dict[str, tuple[VolumeSlices, ...]] = {}
    problems: list[Problem] = []

    def take(source: Source, contents: Contents) -> None:
        problems.extend(contents.problems)
        if contents.volumes:
            there[source.name] = contents.volumes
        if source.is_database:
            database.add(source, contents.volumes)

    missing = []
    for source in sources:
        kept = store.describe(source.key)
        if kept is None:
            missing.append(source)
        else:
            times.reused_slices += sum(len(volume.indices) for volume in kept.volumes)
            take(source, kept)
    if not missing:
        return there, problems
    with (
        reporter.stage(f"embedding with {backbone.name}", 0, "slices") as stage,
        Reader(missing, policy, batch_size, times, stage.expect) as reader,
    ):
        rows: list[NDArray[np.float32]] = []
        for entry in reader:
            if isinstance(entry, Finished):
                if entry.contents.volumes:
                    vectors = np.concatenate(rows) if rows else np.empty((0, backbone.dimension), np.float32)
                    store.save(entry.source.key, Embedded(entry.contents, vectors))
                    times.embedded_slices += len(vectors)
                    stage.advance(sum(volume.blank_count for volume in entry.contents.volumes))
                take(entry.source, entry.contents)
                rows = []
                continue
            with times.stage("embedding"):
                rows.append(runtime.embed(entry.slices))
            stage.advance(len(entry.slices))
            if len(entry.slices) == batch_size:
                bare.offer(entry.slices)
            if bare.is_due():
                _measure_alone(bare, reader, database)
        if not bare.measured_slices:
            _measure_alone(bare, reader, database)
    return there, problems


def _measure_alone(bare: BareEmbedding, reader: Reader, database: Database) -> None:
    with ExitStack() as alone:
        for lock in (*reader.locks, database.lock):
            alone.enter_context(lock)
        bare.measure()
