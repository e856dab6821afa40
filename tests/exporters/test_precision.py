"""Half precision and eight bits: what they cost, where they are refused, and the bar below which nothing is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from slicevote_exporters import graph
from slicevote_exporters import manifest as manifests
from slicevote_exporters import precision as precisions
from slicevote_exporters.built import AROUND_NETWORK
from slicevote_exporters.errors import ExportError, ParityFailed, PrecisionRefused
from slicevote_exporters.export import ExportRequest, export_backbone
from slicevote_exporters.families import lite0
from slicevote_exporters.precision import BARS, KEPT_IN_FP32, PrecisionBars
from slicevote_exporters.registry import find

from tests.exporters.conftest import graph_of
from tests.exporters.test_exports import run


@pytest.mark.parametrize(
    ("name", "precision", "least", "share_of_size"),
    [
        ("dinov1-vits16", "int8", 0.99, 0.30),
        ("efficientnet-lite0", "fp16", 0.999, 0.52),
        pytest.param("dinov1-vits16", "fp16", 0.9999, 0.52, marks=pytest.mark.slow),
        pytest.param("dinov2-vits14", "int8", 0.99, 0.30, marks=pytest.mark.slow),
        pytest.param("dinov2-vits14", "fp16", 0.9999, 0.52, marks=pytest.mark.slow),
        pytest.param("radimagenet-swin", "int8", 0.98, 0.35, marks=pytest.mark.slow),
        pytest.param("radimagenet-swin", "fp16", 0.999, 0.52, marks=pytest.mark.slow),
        pytest.param("radimagenet-resnet50", "fp16", 0.999, 0.52, marks=pytest.mark.slow),
        pytest.param("dreamsim-dino-vitb16", "int8", 0.98, 0.30, marks=pytest.mark.slow),
        pytest.param("dreamsim-dino-vitb16", "fp16", 0.999, 0.52, marks=pytest.mark.slow),
    ],
)
def test_smaller_precisions_are_smaller_and_close(name, precision, least, share_of_size, exported):
    report = exported(name, precision)
    manifest = manifests.read(report.path)
    onnx.checker.check_model(str(report.path), full_check=True)
    assert manifest.precision == precision
    assert least < manifest.parity.minimum_cosine < 1
    assert manifest.golden.minimum_cosine == BARS[precision].golden
    full = exported(name)
    assert report.size_bytes < share_of_size * full.size_bytes
    assert manifest.weights_sha256 == full.manifest.weights_sha256
    image = np.random.default_rng(manifest.golden.seed).random((1, 224, 224), dtype=np.float32)
    np.testing.assert_allclose(run(report.path, image)[0], np.array(manifest.golden.embedding), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(run(report.path, np.tile(image, (7, 1, 1))), axis=1), 1, atol=1e-3)


def test_half_precision_keeps_norms_and_softmax_in_single(exported):
    full = onnx.load(str(exported("dinov1-vits16").path))
    model = onnx.shape_inference.infer_shapes(precisions.convert(full, "fp16"), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    kept = [node for node in model.graph.node if node.op_type in KEPT_IN_FP32]
    around = [node for node in model.graph.node if node.name.startswith(AROUND_NETWORK) and node.op_type == "Div"]
    assert len(kept) == 25 + 12
    assert len(around) == 2
    assert {types[node.output[0]] for node in (*kept, *around)} == {single}
    assert {types[node.output[0]] for node in model.graph.node if node.op_type == "MatMul"} == {half}
    # What stays in single precision is not squeezed through half precision on the way.
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert not [name for name in casts.values() if name in casts]
    sub = next(node for node in model.graph.node if node.op_type == "Sub" and node.name.startswith(AROUND_NETWORK))
    assert types[sub.input[0]] == single


@pytest.mark.parametrize("name", ["efficientnet-lite0", "radimagenet-resnet50"])
def test_convolutions_are_refused_in_eight_bits_before_any_work(name, tmp_path):
    request = ExportRequest(find(name), tmp_path / "out.onnx", weights=tmp_path / "none.pth", precision="int8")
    with pytest.raises(PrecisionRefused, match="made of convolutions"):
        export_backbone(request)


def test_a_network_that_turns_out_to_be_convolutions_is_refused_too(exported):
    with pytest.raises(PrecisionRefused, match="of the weights are in matrix products"):
        precisions.convert(onnx.load(str(exported("efficientnet-lite0").path)), "int8")


@pytest.fixture
def unreachable_bar(monkeypatch):
    """A bar that no file reaches, in the place of a network that loses too much."""
    monkeypatch.setitem(precisions.BARS, "fp32", PrecisionBars(parity=1.1, golden=0.999))


def test_below_the_bar_nothing_is_written_unless_forced(tmp_path, unreachable_bar):
    out = tmp_path / "e.onnx"
    out.write_bytes(b"what was there before")
    request = ExportRequest(find("efficientnet-lite0"), out)
    with pytest.raises(ParityFailed, match=r"1\.1 is required.*Nothing was written; use --force"):
        export_backbone(request)
    assert out.read_bytes() == b"what was there before"
    report = export_backbone(replace(request, force=True))
    assert report.below_bar
    assert report.replaced
    assert manifests.read(out).parity.minimum_cosine > 0.9999
    assert [path.name for path in tmp_path.iterdir()] == ["e.onnx"]


@pytest.mark.parametrize("name", ["efficientnet-lite0", "radimagenet-resnet50"])
def test_a_graph_that_computes_something_else_fails_parity(name, cases, exported, tmp_path, monkeypatch):
    """The comparison is a real one: a file of other weights is caught."""
    model = graph_of(exported(name).path)
    kernel = next(tensor for tensor in model.graph.initializer if list(tensor.dims)[1:2] == [3] and tensor.dims[2] > 1)
    kernel.raw_data = (np.frombuffer(kernel.raw_data, dtype=np.float32)[::-1]).tobytes()
    monkeypatch.setattr(lite0, "serving_graph", lambda *_: model)
    monkeypatch.setattr(graph, "to_onnx", lambda _: model)
    with pytest.raises(ParityFailed, match="does not compute what PyTorch computes"):
        export_backbone(ExportRequest(find(name), tmp_path / "e.onnx", weights=cases(name).weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "x" * 65])
def test_a_name_that_cannot_name_an_archive_is_refused(name, tmp_path):
    spec = replace(find("efficientnet-lite0"), name=name)
    with pytest.raises(ExportError, match="cannot name a backbone"):
        export_backbone(ExportRequest(spec, tmp_path / "e.onnx"))
