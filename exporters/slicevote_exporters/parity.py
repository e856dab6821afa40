"""Compare what an ONNX file computes with what PyTorch computes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
from slicevote.contract import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME

from slicevote_exporters.built import FloatArray
from slicevote_exporters.errors import ParityFailed

PARITY_SLICES = 16
BATCH = 8
"""Number of slices that go through a network at once."""


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

    It uses one thread, so that the numbers do not depend on how many cores the exporting machine has.
    """

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        started = time.perf_counter()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - started

    def embed(self, slices: FloatArray) -> FloatArray:
        """Embed float32 `[N, 224, 224]` in [0, 1] in batches; return float32 `[N, D]`."""
        return np.concatenate([self._session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] for batch in batches(slices)])


def batches(slices: FloatArray) -> list[FloatArray]:
    """Split slices `[N, 224, 224]` into batches that a network takes at once."""
    return [slices[start : start + BATCH] for start in range(0, len(slices), BATCH)]


def parity_slices() -> FloatArray:
    """Return sixteen seeded slices to compare on, float32 `[16, 224, 224]` in [0, 1].

    They are noise at many scales, from large soft shapes to single pixels, half of it under a window that cuts off
    most of the range, as on a CT. Noise of single pixels alone would look all the same to a backbone.
    """
    generator = np.random.default_rng(0)
    slices = np.empty((PARITY_SLICES, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
    for index in range(PARITY_SLICES):
        edge = (4, 7, 14, 28, 56, 112, 224)[index % 7]
        smooth = _magnified(generator.random((edge, edge), dtype=np.float32))
        fine = generator.random((INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
        mixed = 0.9 * smooth + 0.1 * fine
        slices[index] = np.clip(3 * mixed - 1, 0, 1) if index % 2 else mixed
    return slices


def _magnified(square: FloatArray) -> FloatArray:
    """Return a square picture at 224 x 224, by bilinear interpolation between the centres of its pixels."""
    edge = len(square)
    places = (np.arange(INPUT_SIZE) + 0.5) * edge / INPUT_SIZE - 0.5
    wide = np.stack([np.interp(places, np.arange(edge), row) for row in square])
    return np.stack([np.interp(places, np.arange(edge), column) for column in wide.T], axis=1).astype(np.float32)


def blank_slices() -> FloatArray:
    """Return a black slice and a white one, float32 `[2, 224, 224]`."""
    shape = (1, INPUT_SIZE, INPUT_SIZE)
    return np.concatenate([np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)])


def compare(reference: FloatArray, embeddings: FloatArray) -> ParityReport:
    """Compare two sets of unit vectors, both float32 `[N, D]`, row by row.

    Raises:
        ParityFailed: Their shapes differ, or a vector is not finite and of unit length.
    """
    if reference.ndim != 2 or reference.shape != embeddings.shape:
        raise ParityFailed(
            f"PyTorch's embeddings have the shape {reference.shape} and the file's {embeddings.shape}; both must have "
            "one vector per slice"
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
    """Check vectors, float32 `[N, D]`.

    Raises:
        ParityFailed: A vector is not finite, or not of unit length.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.isfinite(vectors).all() or np.abs(lengths - 1).max() > 1e-3:
        raise ParityFailed(f"{label} computes vectors that are not finite and of unit length; the weights are unusable")


def _rounded(value: float) -> float:
    """Round to nine decimals; beyond them there is only the order of float32 sums."""
    return round(value, 9)
