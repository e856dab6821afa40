"""Benchmark the archive's lookups against the engines themselves, called in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import qdrant_edge as edge
from slicevote_server.archive.interface import ArchiveIdentity, ArchiveSettings, IndexedSlices, VolumeRecord
from slicevote_server.archive.kinds import open_archive
from slicevote_server.archive.lsh import LshIndex

from benchmarks.measure import Result, in_turns, ratio

DIMENSION = 384
VOLUMES = 250
SLICES = 80
QUERIES = 100
SETTINGS = ArchiveSettings()


def measure() -> Iterator[Result]:
    """Measure 100 queries over 20,000 slices of 384 dimensions."""
    generator = np.random.default_rng(0)
    vectors = correlated(generator, VOLUMES, SLICES)
    queries = normalise(vectors[:: VOLUMES // 10, :10].reshape(-1, DIMENSION) + 0.3 * noise(generator, 100))
    flat = vectors.reshape(-1, DIMENSION)
    with tempfile.TemporaryDirectory() as scratch:
        identity = ArchiveIdentity("bench", "0" * 64, DIMENSION, "fp32")
        archive = open_archive(Path(scratch) / "ours", identity, SETTINGS)
        for number, stack in enumerate(vectors):
            record, slices = volume(number, stack)
            archive.put(record, slices)
        archive.optimize()
        lsh = LshIndex.open(Path(scratch) / "lsh", archive)
        shard = bare_shard(Path(scratch) / "bare", flat)
        bare_lsh = faiss.IndexLSH(DIMENSION, lsh.bits, True, False)
        bare_lsh.add(flat)
        samples = in_turns(
            {
                "hnsw": lambda: archive.nearest(queries),
                "bare hnsw": lambda: bare_query(shard, queries),
                "exact": lambda: archive.nearest(queries, exact=True),
                "numpy": lambda: (queries @ flat.T).argmax(axis=1),
                "lsh": lambda: lsh.nearest(queries),
                "bare lsh": lambda: bare_lsh.search(queries, 1),
            },
            runs=9,
        )
        truth = (queries @ flat.T).max(axis=1)
        found = np.array([hits[0].similarity for hits in archive.nearest(queries).hits])
        shard.close()
        archive.close()
    size = f"{QUERIES} queries, {VOLUMES * SLICES} slices of {DIMENSION}"
    yield ratio("archive_hnsw_over_bare_edge", samples["hnsw"], samples["bare hnsw"],
                reference="Qdrant Edge's query_batch in the caller's process, no ties looked at",
                note=f"{size}; ours crosses to the worker process")  # fmt: skip
    yield ratio("archive_exact_over_numpy", samples["exact"], samples["numpy"], reference="queries @ slices.T",
                note=size)  # fmt: skip
    yield ratio("archive_lsh_over_bare_faiss", samples["lsh"], samples["bare lsh"], reference="faiss.IndexLSH.search",
                note=f"{size}, {lsh.bits} bits; ours settles ties and checks that it is in step")  # fmt: skip
    recall = float((found >= truth - 1e-5).mean())
    yield Result("archive_hnsw_recall_at_1", recall, "share", "higher", "exact search", f"{size}; by distance")


def correlated(generator: np.random.Generator, volumes: int, slices: int) -> np.ndarray:
    """Return stacks of unit vectors that drift from slice to slice, float32 [volumes, slices, D]."""
    start = generator.normal(size=(volumes, 1, DIMENSION))
    drift = np.cumsum(0.2 * generator.normal(size=(volumes, slices, DIMENSION)), axis=1)
    return normalise((start + drift).astype(np.float32))


def noise(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return random unit vectors."""
    return normalise(generator.normal(size=(count, DIMENSION)).astype(np.float32))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to unit length."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def volume(number: int, stack: np.ndarray) -> tuple[VolumeRecord, IndexedSlices]:
    """Return a volume as an ingest makes it."""
    indices = tuple(range(len(stack)))
    record = VolumeRecord(
        f"v{number}", "CT", {}, "", "", "", "", tuple(map(float, indices)), indices, ("",) * len(stack), 0,
        datetime.now(UTC), number + 1,
    )  # fmt: skip
    return record, IndexedSlices(indices, stack, (b"",) * len(stack))


def bare_shard(path: Path, flat: np.ndarray) -> edge.EdgeShard:
    """Build the same graph with Qdrant Edge alone."""
    path.mkdir()
    config = edge.EdgeConfig(
        vectors={"v": edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine)},
        hnsw_config=edge.HnswIndexConfig(m=SETTINGS.m, ef_construct=SETTINGS.ef_construct, full_scan_threshold=1000),
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=4),
    )
    shard = edge.EdgeShard.create(str(path), config)
    for start in range(0, len(flat), 1000):
        chunk = [edge.Point(start + i, {"v": v}, {}) for i, v in enumerate(flat[start : start + 1000].tolist())]
        shard.update(edge.UpdateOperation.upsert_points(chunk))
    shard.optimize()
    return shard


def bare_query(shard: edge.EdgeShard, queries: np.ndarray) -> list[list[edge.ScoredPoint]]:
    """Query Qdrant Edge alone."""
    parameters = edge.SearchParams(hnsw_ef=SETTINGS.ef_search)
    requests = [
        edge.QueryRequest(query=edge.Query.Nearest(vector, using="v"), limit=1, params=parameters)
        for vector in queries.tolist()
    ]
    return shard.query_batch(edge.QueryBatchRequest(queries=requests))
