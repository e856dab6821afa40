"""Sampling, aggregation and index as short texts: "random:20", "mm:5", "gaussian", "hnsw"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from slicevote.v1 import retrieval_pb2, sampling_pb2

from slicevote_client.errors import InvalidOption

MessageT = TypeVar("MessageT")

SAMPLING_FORMS = "all; random:N or random:N:SEED; mm:GAP (millimetres); nth:STEP (slices); even:N"
AGGREGATION_FORMS = "count; gaussian or gaussian:SIGMA; similarity; slice-wise"

INDEXES: Mapping[str, retrieval_pb2.VectorIndex.ValueType] = {
    "hnsw": retrieval_pb2.VECTOR_INDEX_HNSW,
    "lsh": retrieval_pb2.VECTOR_INDEX_LSH,
    "exact": retrieval_pb2.VECTOR_INDEX_EXACT,
}


def sampling_message(text: str) -> sampling_pb2.Sampling:
    """Return the sampling that a text means: "all", "random:20", "random:20:7", "mm:5", "nth:3" or "even:16".

    Raises:
        InvalidOption: The text is none of these forms.
    """
    forms: Mapping[str, Callable[..., sampling_pb2.Sampling]] = {
        "all": lambda: sampling_pb2.Sampling(all=sampling_pb2.AllSlices()),
        "random": lambda count, seed="0": sampling_pb2.Sampling(
            random=sampling_pb2.RandomSlices(count=_count(count), seed=_whole(seed, 0, 64))
        ),
        "mm": lambda gap: sampling_pb2.Sampling(every_millimetres=sampling_pb2.EveryMillimetres(gap_mm=_width(gap))),
        "nth": lambda step: sampling_pb2.Sampling(every_nth=sampling_pb2.EveryNthSlice(step=_count(step))),
        "even": lambda count: sampling_pb2.Sampling(evenly_spaced=sampling_pb2.EvenlySpacedSlices(count=_count(count))),
    }
    return _message(text, forms, "sampling", SAMPLING_FORMS)


def aggregation_message(text: str) -> retrieval_pb2.Aggregation:
    """Return the aggregation that a text means: "count", "gaussian", "gaussian:0.2", "similarity" or "slice-wise".

    Raises:
        InvalidOption: The text is none of these forms.
    """
    forms: Mapping[str, Callable[..., retrieval_pb2.Aggregation]] = {
        "count": lambda: retrieval_pb2.Aggregation(count=retrieval_pb2.CountVotes()),
        "gaussian": lambda sigma=None: retrieval_pb2.Aggregation(
            gaussian=retrieval_pb2.GaussianVotes(sigma=None if sigma is None else _width(sigma))
        ),
        "similarity": lambda: retrieval_pb2.Aggregation(similarity=retrieval_pb2.SimilarityVotes()),
        "slice-wise": lambda: retrieval_pb2.Aggregation(slice_wise=retrieval_pb2.SliceWise()),
    }
    return _message(text, forms, "aggregation", AGGREGATION_FORMS)


def index_value(text: str) -> retrieval_pb2.VectorIndex.ValueType:
    """Return the index of that name: "hnsw", "lsh" or "exact".

    Raises:
        InvalidOption: There is none.
    """
    if text not in INDEXES:
        raise InvalidOption(f"'{text}' is no index; the indexes are {', '.join(INDEXES)}")
    return INDEXES[text]


def _message(text: str, forms: Mapping[str, Callable[..., MessageT]], what: str, known: str) -> MessageT:
    name, *arguments = text.split(":")
    try:
        return forms[name](*arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidOption(
            f"'{text}' is no {what}; the forms are: {known}; N, GAP, STEP and SIGMA exceed 0"
        ) from error


def _count(text: str) -> int:
    return _whole(text, 1, 32)


def _whole(text: str, least: int, bits: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) < 1 << bits):
        raise ValueError(text)
    return int(text)


def _width(text: str) -> float:
    width = float(text)
    if not (math.isfinite(width) and width > 0):
        raise ValueError(text)
    return width
