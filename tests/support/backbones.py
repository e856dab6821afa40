"""A tiny backbone, so that tests of everything else are quick: average pooling, a seeded projection, L2."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper
from slicevote.contract import GOLDEN_SEED, golden_input
from slicevote.v1.backbone_pb2 import BackboneManifest, GoldenEmbedding, Normalisation

POOLED = 16


def write_tiny_backbone(
    path: Path,
    *,
    name: str = "tiny",
    dimension: int = 64,
    seed: int = 0,
    golden: np.ndarray | None = None,
) -> Path:
    """Writes a serving graph of a few kilobytes that tells pictures apart by their coarse layout.

    Args:
        path: Where to.
        name: The backbone's name.
        dimension: Length of an embedding.
        seed: Of its weights.
        golden: The golden embedding to claim; by default the true one.
    """
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(POOLED * POOLED, dimension)).astype(np.float32)
    # The mean over all pixels would be most of every vector; without it pictures differ.
    weights -= weights.mean(axis=0)
    constants = {
        "channel": np.array([1], np.int64),
        "flat": np.array([0, -1], np.int64),
        "weights": weights,
    }
    side = 224 // POOLED
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["slices", "channel"], ["picture"]),
            helper.make_node("AveragePool", ["picture"], ["pooled"], kernel_shape=[side, side], strides=[side, side]),
            helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
            helper.make_node("MatMul", ["features", "weights"], ["projected"]),
            helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
        ],
        "tiny",
        [helper.make_tensor_value_info("slices", TensorProto.FLOAT, ["N", 224, 224])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", dimension])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    computed = session.run(["embeddings"], {"slices": golden_input(GOLDEN_SEED)})[0][0]
    manifest = BackboneManifest(
        schema_version=1,
        name=name,
        family="test",
        dimension=dimension,
        input_size=224,
        weights_sha256=hashlib.sha256(weights.tobytes()).hexdigest(),
        weights_source="seeded random values",
        licence="none",
        normalisations=[Normalisation(mean=[0, 0, 0], std=[1, 1, 1])],
        precision="fp32",
        opset=18,
        exporter_version="tests",
        golden=GoldenEmbedding(
            seed=GOLDEN_SEED, embedding=computed if golden is None else golden, minimum_cosine=0.999
        ),
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "slicevote.manifest", json_format.MessageToJson(manifest, indent=None)
    onnx.save(model, path)
    return path
