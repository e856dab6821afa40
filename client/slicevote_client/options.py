"""What can be asked of a search, in short words: "random:20", "mm:5", "gaussian"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from slicevote.v1 import retrieval_pb2, sampling_pb2

MessageT = TypeVar("MessageT")

SAMPLING_HELP = "all; random:N or random:N:SEED; mm:GAP (millimetres); nth:STEP (slices); even:N"
AGGREGATION_HELP = "count; gaussian or gaussian:SIGMA; similarity; slicewise"

INDEXES: Mapping[str, retrieval_pb2.VectorIndex.ValueType] = {
    "hnsw": retrieval_pb2.VECTOR_INDEX_HNSW,
    "lsh": retrieval_pb2.VECTOR_INDEX_LSH,
    "exact": retrieval_pb2.VECTOR_INDEX_EXACT,
}


def sampling_message(words: str) -> sampling_pb2.Sampling:
    """Translates a sampling scheme, as "all", "random:20:7", "mm:5", "nth:3", "even:16".

    Raises:
        ValueError: It is none.
    """
    schemes: Mapping[str, Callable[..., sampling_pb2.Sampling]] = {
        "all": lambda: sampling_pb2.Sampling(all=sampling_pb2.AllSlices()),
        "random": lambda count, seed="0": sampling_pb2.Sampling(
            random=sampling_pb2.RandomSlices(count=int(count), seed=int(seed))
        ),
        "mm": lambda gap: sampling_pb2.Sampling(every_millimetres=sampling_pb2.EveryMillimetres(gap_mm=float(gap))),
        "nth": lambda step: sampling_pb2.Sampling(every_nth=sampling_pb2.EveryNthSlice(step=int(step))),
        "even": lambda count: sampling_pb2.Sampling(evenly_spaced=sampling_pb2.EvenlySpacedSlices(count=int(count))),
    }
    return _translate(words, schemes, "sampling", SAMPLING_HELP)


def aggregation_message(words: str) -> retrieval_pb2.Aggregation:
    """Translates an aggregation, as "count", "gaussian", "gaussian:0.2", "similarity", "slicewise".

    Raises:
        ValueError: It is none.
    """
    methods: Mapping[str, Callable[..., retrieval_pb2.Aggregation]] = {
        "count": lambda: retrieval_pb2.Aggregation(count=retrieval_pb2.CountVotes()),
        "gaussian": lambda sigma=None: retrieval_pb2.Aggregation(
            gaussian=retrieval_pb2.GaussianVotes(sigma=None if sigma is None else float(sigma))
        ),
        "similarity": lambda: retrieval_pb2.Aggregation(similarity=retrieval_pb2.SimilarityVotes()),
        "slicewise": lambda: retrieval_pb2.Aggregation(slice_wise=retrieval_pb2.SliceWise()),
    }
    return _translate(words, methods, "aggregation", AGGREGATION_HELP)


def _translate(words: str, makers: Mapping[str, Callable[..., MessageT]], what: str, known: str) -> MessageT:
    name, *arguments = words.split(":")
    try:
        return makers[name](*arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{words}' is no {what}; known are: {known}") from error
