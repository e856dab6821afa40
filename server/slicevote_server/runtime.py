"""What a backbone runs on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

INPUT_NAME = "slices"
OUTPUT_NAME = "embeddings"


@dataclass(frozen=True)
class Numerics:
    """How a backbone is computed. Embeddings of different numerics are near each other, not equal.

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
        """Gives the fields as plain data."""
        return asdict(self)


@runtime_checkable
class Runtime(Protocol):
    """Computes embeddings; called by one thread at a time."""

    @property
    def numerics(self) -> Numerics:
        """How it computes."""
        ...

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes grey slices float32 [N, 224, 224] in [0, 1] and gives float32 [N, D], unit length."""
        ...


class OnnxRuntime:
    """ONNX Runtime on one session.

    Args:
        session: An `onnxruntime.InferenceSession` of a serving graph.
        precision: Precision of the file.
    """

    def __init__(self, session: Any, precision: str) -> None:
        self._session = session
        self.numerics = Numerics("onnxruntime", session.get_providers()[0], precision)

    def embed(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes grey slices float32 [N, 224, 224] in [0, 1] and gives float32 [N, D], unit length."""
        embeddings: NDArray[np.float32] = self._session.run([OUTPUT_NAME], {INPUT_NAME: slices})[0]
        return embeddings
