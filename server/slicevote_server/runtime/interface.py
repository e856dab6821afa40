"""The interface of all runtimes, and the description of how they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

DEFAULT_BATCH = 8
"""Slices per batch. More gain nothing on a CPU and make small requests wait."""


@dataclass(frozen=True)
class Numerics:
    """How embeddings are computed. Embeddings of different numerics are close to each other, not equal.

    Attributes:
        runtime: "onnxruntime" or "openvino".
        provider: Execution provider or device.
        precision: "fp32", "fp16", "bf16" or "int8".
    """

    runtime: str
    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.precision} on {self.provider} ({self.runtime})"

    def as_mapping(self) -> dict[str, str]:
        """Return the fields as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Numerics:
        """Return the numerics that `as_mapping` described."""
        return cls(fields["runtime"], fields["provider"], fields["precision"])


@runtime_checkable
class Runtime(Protocol):
    """A backbone that is ready to compute embeddings. Call it from one thread at a time."""

    @property
    def numerics(self) -> Numerics:
        """How the embeddings are computed."""
        ...

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings float32 [N, D] of unit length for grey slices float32 [N, 224, 224] in [0, 1]."""
        ...
