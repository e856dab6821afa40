"""Benchmark the main job, from files to ranking, against bare embedding of the same slices and a plain script."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import faiss
import numpy as np
import onnxruntime
from slicevote_client import Client, read_volumes
from slicevote_server.intensity import IntensityPolicy, prepare

from benchmarks.measure import Result, in_turns, ratio
from benchmarks.scans import plain_read, write_series
from benchmarks.serving import serving

BATCH = 8
SLICES = 100


def measure(backbone: Path) -> Iterator[Result]:
    """Measure searches and ingests of one series of 100 slices of 512 x 512."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_series(Path(scratch) / "query", slices=SLICES)
        others = [write_series(Path(scratch) / f"other{seed}", slices=40, side=256, seed=seed) for seed in range(1, 6)]
        session = bare_session(backbone)
        policy = IntensityPolicy()
        (volume,) = read_volumes(folder)
        greys = np.stack(
            [
                prepare(image, modality="CT", intensity_range=None, policy=policy, thumbnail=False).grey
                for image in volume.slices(range(len(volume)))
            ]
        )

        def bare() -> np.ndarray:
            return np.concatenate(
                [session.run(None, {"slices": greys[i : i + BATCH]})[0] for i in range(0, SLICES, BATCH)]
            )

        with (
            serving(backbone, Path(scratch) / "data", "--provider", "cpu") as address,
            Client(address, secret=b"benchmark") as client,
        ):
            for other in others:
                client.ingest(read_volumes(other)[0])
            client.ingest(read_volumes(folder)[0])

            def search() -> None:
                client.search(read_volumes(folder)[0], include_own=True)

            def sampled() -> None:
                client.search(read_volumes(folder)[0], sampling="even:20", include_own=True)

            def ingest() -> None:
                client.ingest(read_volumes(folder)[0])

            index = faiss.IndexFlatIP(bare().shape[1])
            owners: list[int] = []
            for place, other in enumerate([*others, folder]):
                embedded = plain_embed(session, plain_read(other))
                index.add(embedded)
                owners += [place] * len(embedded)

            def script() -> int:
                _, found = index.search(plain_embed(session, plain_read(folder)), 1)
                return Counter(owners[row] for row in found[:, 0]).most_common(1)[0][0]

            samples = in_turns(
                {"bare": bare, "search": search, "sampled": sampled, "ingest": ingest, "script": script}, runs=7
            )
    reference = "bare ONNX Runtime on the prepared slices, batches of 8"
    yield ratio("search_over_bare_embedding", samples["search"], samples["bare"], reference=reference,
                note="100 DICOM files of 512 x 512 through client, gRPC, embedding, HNSW and votes")  # fmt: skip
    yield ratio("ingest_over_bare_embedding", samples["ingest"], samples["bare"], reference=reference,
                note="the same, with thumbnails, durable")  # fmt: skip
    yield ratio("sampled_search_over_bare_embedding", samples["sampled"], samples["bare"], reference=reference,
                note="20 of the 100 slices voted")  # fmt: skip
    yield ratio("search_over_plain_script", samples["search"], samples["script"],
                reference="pydicom, OpenCV, ONNX Runtime and a flat FAISS index in one process",
                note="the script reads, embeds and votes one step after the other")  # fmt: skip


def bare_session(backbone: Path) -> onnxruntime.InferenceSession:
    """Open a backbone as ONNX Runtime does by itself."""
    return onnxruntime.InferenceSession(str(backbone), providers=["CPUExecutionProvider"])


def plain_embed(session: onnxruntime.InferenceSession, slices: list[np.ndarray]) -> np.ndarray:
    """Window, resize and embed as a plain script would."""
    greys = [cv2.resize(np.clip((s + 1000) / 2000, 0, 1).astype(np.float32), (224, 224)) for s in slices]
    stacked = np.stack(greys)
    return np.concatenate(
        [session.run(None, {"slices": stacked[i : i + BATCH]})[0] for i in range(0, len(greys), BATCH)]
    )
