"""What a backbone runs on: one small interface, ONNX Runtime and OpenVINO behind it, and the choice between them."""

from slicevote_server.runtime.choice import PROVIDERS, RuntimeSettings, open_runtime
from slicevote_server.runtime.interface import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME, Numerics, Runtime

__all__ = [
    "INPUT_NAME",
    "INPUT_SIZE",
    "OUTPUT_NAME",
    "PROVIDERS",
    "Numerics",
    "Runtime",
    "RuntimeSettings",
    "open_runtime",
]
