"""What a backbone runs on: one small interface, ONNX Runtime and OpenVINO behind it, and the choice between them."""

from slicevote_server.runtime.interface import DEFAULT_BATCH, Numerics, Runtime
from slicevote_server.runtime.providers import PROVIDERS, RuntimeSettings, open_runtime

__all__ = [
    "DEFAULT_BATCH",
    "PROVIDERS",
    "Numerics",
    "Runtime",
    "RuntimeSettings",
    "open_runtime",
]
