"""Benchmark ingests of several series, one at a time and in parallel, against their bare embedding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from slicevote_client import Client, ingest_all, read_volumes
from slicevote_server.intensity import IntensityPolicy, prepare

from benchmarks.measure import Result, in_turns, ratio
from benchmarks.scans import write_series
from benchmarks.search import BATCH, bare_session
from benchmarks.serving import serving

SERIES = 6
SLICES = 50


def measure(backbone: Path) -> Iterator[Result]:
    """Measure the ingest of six series of 50 slices of 512 x 512."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [write_series(Path(scratch) / f"s{seed}", slices=SLICES, seed=seed) for seed in range(SERIES)]
        session, policy = bare_session(backbone), IntensityPolicy()
        greys = np.stack(
            [
                prepare(image, modality="CT", intensity_range=None, policy=policy, thumbnail=False).grey
                for folder in folders
                for image in read_volumes(folder)[0].slices(range(SLICES))
            ]
        )

        def bare() -> None:
            for start in range(0, len(greys), BATCH):
                session.run(None, {"slices": greys[start : start + BATCH]})

        with (
            serving(backbone, Path(scratch) / "data", "--provider", "cpu") as address,
            Client(address, secret=b"benchmark") as client,
        ):

            def ingest(parallel: int) -> None:
                volumes = (read_volumes(folder)[0] for folder in folders)
                for outcome in ingest_all(client, volumes, parallel=parallel):
                    if outcome.error is not None:
                        raise outcome.error

            samples = in_turns({"bare": bare, "one": lambda: ingest(1), "two": lambda: ingest(2)}, runs=5)
    size = f"{SERIES} series of {SLICES} DICOM files of 512 x 512, with thumbnails, durable"
    reference = "bare ONNX Runtime on the prepared slices, batches of 8"
    yield ratio("bulk_ingest_over_bare_embedding[one]", samples["one"], samples["bare"], reference=reference,
                note=f"{size}; one at a time")  # fmt: skip
    yield ratio("bulk_ingest_over_bare_embedding[two]", samples["two"], samples["bare"], reference=reference,
                note=f"{size}; two at a time, as the command line does")  # fmt: skip
