"""Does the ONNX file compute what PyTorch computes?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from slicevote.contract import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME
from torch.nn import functional

from slicevote_exporters.errors import ParityFailed
from slicevote_exporters.serving import ServingGraph

FloatArray = npt.NDArray[np.float32]

PARITY_SLICES = 16
BATCH = 8
"""Slices that go through a network at once."""


@dataclass(frozen=True)
class ParityReport:
    """Two sets of embeddings of the same slices, compared."""

    input_count: int
    minimum_cosine: float
    mean_cosine: float
    maximum_error: float
    """Greatest absolute difference of an element."""


class OnnxEmbedder:
    """An ONNX backbone on ONNX Runtime's CPU provider.

    One thread, so that the numbers do not depend on how many cores the exporting machine has.
    """

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        started = time.perf_counter()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - started

    def embed(self, slices: FloatArray) -> FloatArray:
        """Embeds float32 `[N, 224, 224]` in [0, 1], in batches; float32 `[N, D]`."""
        return np.concatenate([self._session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] for batch in _batches(slices)])


def embed_in_torch(serving: ServingGraph, slices: FloatArray) -> FloatArray:
    """Embeds float32 `[N, 224, 224]` in [0, 1] with PyTorch in fp32; float32 `[N, D]`."""
    with torch.inference_mode(), _one_torch_thread():
        return np.concatenate([serving(torch.from_numpy(batch)).numpy() for batch in _batches(slices)])


def _batches(slices: FloatArray) -> list[FloatArray]:
    return [slices[start : start + BATCH] for start in range(0, len(slices), BATCH)]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def parity_slices() -> FloatArray:
    """Sixteen seeded slices to compare on, float32 `[16, 224, 224]` in [0, 1].

    Noise at many scales, from large soft shapes to single pixels, some of it under a window that cuts off most of
    the range as on a CT. Noise of single pixels alone would all look the same to a backbone.
    """
    generator = np.random.default_rng(0)
    slices = np.empty((PARITY_SLICES, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
    for index in range(PARITY_SLICES):
        edge = (4, 7, 14, 28, 56, 112, 224)[index % 7]
        coarse = torch.from_numpy(generator.random((1, 1, edge, edge), dtype=np.float32))
        size = (INPUT_SIZE, INPUT_SIZE)
        smooth = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)[0, 0].numpy()
        fine = generator.random(size, dtype=np.float32)
        mixed = 0.9 * smooth + 0.1 * fine
        slices[index] = np.clip(3 * mixed - 1, 0, 1) if index % 2 else mixed
    return slices


def blank_slices() -> FloatArray:
    """A black slice and a white one, float32 `[2, 224, 224]`."""
    shape = (1, INPUT_SIZE, INPUT_SIZE)
    return np.concatenate([np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)])


def compare(reference: FloatArray, embeddings: FloatArray) -> ParityReport:
    """Compares two sets of unit vectors, both float32 `[N, D]`, row by row.

    Raises:
        ParityFailed: Shapes differ, or a vector is not finite and of unit length.
    """
    if reference.ndim != 2 or reference.shape != embeddings.shape:
        raise ParityFailed(
            f"PyTorch gives embeddings of shape {reference.shape}, the file {embeddings.shape}; one vector for each "
            "slice is wanted"
        )
    for label, vectors in (("PyTorch", reference), ("the file", embeddings)):
        require_unit_vectors(vectors, label)
    one, other = reference.astype(np.float64), embeddings.astype(np.float64)
    cosines = (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return ParityReport(
        input_count=len(reference),
        minimum_cosine=_rounded(float(cosines.min())),
        mean_cosine=_rounded(float(cosines.mean())),
        maximum_error=_rounded(float(np.abs(one - other).max())),
    )


def require_unit_vectors(vectors: FloatArray, label: str) -> None:
    """Checks float32 `[N, D]`.

    Raises:
        ParityFailed: A vector is not finite or not of unit length.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.isfinite(vectors).all() or np.abs(lengths - 1).max() > 1e-3:
        raise ParityFailed(f"{label} gives vectors that are not finite and of unit length; the weights are unusable")


def _rounded(value: float) -> float:
    """Nine decimals: beyond them there is nothing but the order of float32 sums."""
    return round(value, 9)
