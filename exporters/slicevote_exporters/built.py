"""A backbone as an ONNX graph in fp32, with what it must compute and what identifies its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slicevote_exporters.registry import Normalisation

if TYPE_CHECKING:
    import onnx

FloatArray = npt.NDArray[np.float32]

OPSET = 18
"""ONNX operator set: the one PyTorch's exporter is written in, so that no graph is converted afterwards."""

NETWORK = "network/"
AROUND_NETWORK = "around/"
"""Prefixes of node names: nodes of the network, and nodes that normalise its input and its output."""


@dataclass(frozen=True)
class BuiltBackbone:
    """A serving graph in fp32 and its reference.

    Attributes:
        model: The graph: `slices` float32 `[N, 224, 224]` in [0, 1] to `embeddings` float32 `[N, D]` of unit length.
        embed_in_torch: Embeds slices with PyTorch, the reference; same shapes as the graph.
        recorded: PyTorch's embeddings of `parity.parity_slices()`, float32 `[16, D]`, where they ship with the
            exporter; None to compute them.
        weights_sha256: Identity of the weights, see `weights_sha256`.
        weights_source: Where the weights came from: a package, a URL, or a file's name without its folder.
        normalisations: Normalisation of each branch.
        parameter_count: Number of weights.
        pooling: How features become one vector; empty if the registry's description holds.
        notes: What was done to the weights, for the person who exports.
    """

    model: onnx.ModelProto
    embed_in_torch: Callable[[FloatArray], FloatArray]
    weights_sha256: str
    weights_source: str
    normalisations: tuple[Normalisation, ...]
    parameter_count: int
    recorded: FloatArray | None = None
    pooling: str = ""
    notes: tuple[str, ...] = ()


def weights_sha256(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """Return the SHA-256 of a set of weights.

    Args:
        tensors: Name, element type (as "float32"), shape and bytes of every tensor, ordered by name.

    Returns:
        Lower-case hex.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, content in tensors:
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(content)
    return digest.hexdigest()
