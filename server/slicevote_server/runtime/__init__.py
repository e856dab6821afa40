"""What a backbone runs on: one small interface, ONNX Runtime and OpenVINO behind it, and the choice between them."""

from slicevote_server.runtime.interface import Numerics, Runtime
from slicevote_server.runtime.providers import PROVIDERS, RuntimeSettings, open_runtime

__all__ = [
    "PROVIDERS",
    "Numerics",
    "Runtime",
    "RuntimeSettings",
    "open_runtime",
]
