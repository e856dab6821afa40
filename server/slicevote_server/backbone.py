"""Backbones: ONNX files that describe themselves.

The server knows no backbone by name. It reads the description that `slicevote-export` wrote into the file, and checks
that it computes the embedding that the exporter computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from slicevote.contract import (
    BACKBONE_NAME,
    INPUT_NAME,
    INPUT_SIZE,
    MANIFEST_KEY,
    MANIFEST_SCHEMA_VERSION,
    OUTPUT_NAME,
    golden_input,
)
from slicevote.v1.backbone_pb2 import BackboneManifest

from slicevote_server.errors import StartupError
from slicevote_server.runtime import Runtime
from slicevote_server.runtime.onnx_session import open_session

BF16_MINIMUM_COSINE = 0.9
"""What the golden embedding must reach in bf16, whatever the file asks for: on real slices the cosine to fp32 is .998
on average and .94 at the least; a provider that computes wrongly is far below."""


@dataclass(frozen=True)
class Backbone:
    """What the server needs to know of a backbone.

    Attributes:
        name: Its name; it names the archive, too.
        dimension: Length of an embedding.
        precision: "fp32", "fp16" or "int8".
        weights_sha256: Identity of the weights.
        golden_seed: Seed of the golden input.
        golden_embedding: float32 [D], what the exporter computed.
        golden_minimum_cosine: A server that is farther off refuses the file.
        manifest_json: The whole description, as it stands in the file.
    """

    name: str
    dimension: int
    precision: str
    weights_sha256: str
    golden_seed: int
    golden_embedding: NDArray[np.float32]
    golden_minimum_cosine: float
    manifest_json: str


def read_backbone(path: Path) -> Backbone:
    """Read the description in a file.

    Raises:
        StartupError: The file is missing or is not a backbone.
    """
    return _describe(path, open_session(path, optimize=False))


def check_golden(path: Path, backbone: Backbone, runtime: Runtime) -> None:
    """Compare the golden embedding with what the runtime computes.

    Raises:
        StartupError: They are too far apart.
    """
    embedding = runtime.embed(golden_input(backbone.golden_seed))[0]
    expected = backbone.golden_embedding
    norms = float(np.linalg.norm(embedding)) * float(np.linalg.norm(expected))
    cosine = float(embedding @ expected) / norms if norms > 0 else float("nan")
    minimum = BF16_MINIMUM_COSINE if runtime.numerics.precision == "bf16" else backbone.golden_minimum_cosine
    if not cosine >= minimum:
        raise StartupError(
            f"{path}: this machine computes another golden embedding than the exporter did, {runtime.numerics}: cosine "
            f"{cosine:.5f}, at least {minimum} is asked for. The file is damaged or the "
            "execution provider computes wrongly; export the backbone again, or choose another provider"
        )


def _describe(path: Path, session: Any) -> Backbone:
    manifest_json = session.get_modelmeta().custom_metadata_map.get(MANIFEST_KEY)
    if manifest_json is None:
        raise StartupError(f"{path}: the file does not say what it is; backbones are made by slicevote-export")
    try:
        manifest = json_format.Parse(manifest_json, BackboneManifest(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise StartupError(f"{path}: the description in the file cannot be read ({error}); export it again") from error
    if manifest.schema_version != MANIFEST_SCHEMA_VERSION:
        raise StartupError(
            f"{path}: the description has version {manifest.schema_version}, this server reads version "
            f"{MANIFEST_SCHEMA_VERSION}; export it again with this release"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shaped = (
        [entry.name for entry in inputs] == [INPUT_NAME]
        and [entry.name for entry in outputs] == [OUTPUT_NAME]
        and inputs[0].shape[1:] == [INPUT_SIZE, INPUT_SIZE]
        and inputs[0].type == "tensor(float)"
        and manifest.input_size == INPUT_SIZE
        and len(manifest.golden.embedding) == manifest.dimension
        and manifest.dimension > 0
        and BACKBONE_NAME.fullmatch(manifest.name) is not None
    )
    if not shaped:
        raise StartupError(
            f"{path}: the graph does not fit its description or this server (wanted: '{INPUT_NAME}' float32 "
            f"[N, {INPUT_SIZE}, {INPUT_SIZE}] to '{OUTPUT_NAME}' [N, {manifest.dimension}]); export it again"
        )
    if not 0 < manifest.golden.minimum_cosine <= 1:
        raise StartupError(
            f"{path}: the description asks for a cosine of {manifest.golden.minimum_cosine} to the golden embedding, "
            "which checks nothing or cannot be reached; export it again"
        )
    return Backbone(
        name=manifest.name,
        dimension=manifest.dimension,
        precision=manifest.precision,
        weights_sha256=manifest.weights_sha256,
        golden_seed=manifest.golden.seed,
        golden_embedding=np.asarray(manifest.golden.embedding, dtype=np.float32),
        golden_minimum_cosine=manifest.golden.minimum_cosine,
        manifest_json=manifest_json,
    )
