"""ResNet50 and Swin Transformer trained on RadImageNet, from the file that a site has been given.

RadImageNet's weights are handed out on request and circulate in several layouts. A layout is recognised by its keys,
renamed to timm's, and loaded strictly: a surplus name, a missing one or another shape is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import Tensor, nn

from slicevote_exporters.errors import WeightsError
from slicevote_exporters.registry import BackboneSpec
from slicevote_exporters.torch_graph import Branch, LoadedBackbone
from slicevote_exporters.weights import Checkpoint, load_strictly, read_checkpoint, without_prefix

WRAPPING_PREFIXES = ("module.", "model.", "encoder.", "backbone.")

SEQUENTIAL_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""RadImageNet's PyTorch release numbers ResNet50's children, which it keeps in an `nn.Sequential`."""

KERAS_BATCH_NORM_EPSILON = 1.001e-5
"""Keras' ResNet50 adds this to the variance; PyTorch's adds 1e-5."""

BATCH_NORM_OF_CONVOLUTION = re.compile(r"^(?P<path>.*?)(?P<kind>conv(?P<number>\d)|downsample\.0)\.bias$")


@dataclass(frozen=True)
class SwinSize:
    """A Swin Transformer of the paper, recognised by the shapes in the checkpoint."""

    architecture: str
    width: int
    """Channels after the patch embedding."""
    third_stage_depth: int
    """Number of blocks of the third stage; the others have two."""


SWIN_SIZES = (
    SwinSize("swin_tiny_patch4_window7_224", 96, 6),
    SwinSize("swin_small_patch4_window7_224", 96, 18),
    SwinSize("swin_base_patch4_window7_224", 128, 18),
    SwinSize("swin_large_patch4_window7_224", 192, 18),
)


def load_resnet50(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build ResNet50 and load RadImageNet's weights.

    Accepted are torchvision's names, and the PyTorch release's numbers (`backbone.0` is conv1, `.1` bn1, `.4` to `.7`
    layer1 to layer4), each with or without a classifier; and conversions from Keras, recognised by the biases of their
    convolutions. Keras' ResNet50 strides in the first convolution of a block (version 1), not in the second,
    and its batch norms have another epsilon; the biases move into the means of the batch norms.

    Raises:
        WeightsError: No file is given, or it cannot be read or does not fit.
    """
    checkpoint, source = _given_checkpoint(spec, weights)
    tensors = _resnet_names(checkpoint)
    # A pooling layer has no weights, so that what follows the stages can only be the classifier.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("fc.", "classifier."))}
    network: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0)
    notes: tuple[str, ...] = ()
    fitted: Mapping[str, Tensor] = tensors
    if any(BATCH_NORM_OF_CONVOLUTION.match(name) for name in tensors):
        fitted = fold_convolution_biases(tensors, checkpoint.origin)
        _make_keras_resnet(network)
        notes = ("the checkpoint comes from Keras: strides in the first convolution, biases folded into batch norms",)
    load_strictly(network, fitted, checkpoint.origin)
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),), weights=tensors, weights_source=source, notes=notes
    )


def load_swin(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build the Swin Transformer that fits the checkpoint's shapes (tiny, small, base or large) and load it.

    Accepted are the names of Microsoft's reference code and timm's, with or without a classifier.

    Raises:
        WeightsError: No file is given, or it cannot be read or does not fit.
    """
    checkpoint, source = _given_checkpoint(spec, weights)
    tensors = _swin_names(without_prefix(checkpoint.tensors, WRAPPING_PREFIXES))
    size = _swin_size(tensors, checkpoint.origin)
    network: nn.Module = timm.create_model(size.architecture, pretrained=False, num_classes=0)
    load_strictly(network, tensors, checkpoint.origin)
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),),
        weights=tensors,
        weights_source=source,
        notes=(f"the checkpoint is a {size.architecture.replace('_', ' ')}",),
    )


def fold_convolution_biases(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Move the biases of convolutions into the means of the batch norms that follow them.

    A batch norm computes `(y + bias - mean) / sqrt(variance + epsilon) * weight + shift`, so subtracting the bias
    from the mean leaves the same function without a bias.

    Raises:
        WeightsError: A biased convolution is not followed by a batch norm of its size.
    """
    folded = dict(tensors)
    for name, bias in tensors.items():
        match = BATCH_NORM_OF_CONVOLUTION.match(name)
        if match is None:
            continue
        norm = f"bn{match['number']}" if match["number"] else "downsample.1"
        mean_name = f"{match['path']}{norm}.running_mean"
        mean = tensors.get(mean_name)
        if mean is None or mean.shape != bias.shape:
            raise WeightsError(f"{origin} has {name} but no {mean_name} of its size to fold it into")
        folded[mean_name] = mean - bias
        del folded[name]
    return folded


def _given_checkpoint(spec: BackboneSpec, weights: Path | None) -> tuple[Checkpoint, str]:
    if weights is None:
        raise WeightsError(
            f"{spec.name} needs a weights file, which RadImageNet's authors hand out on request; "
            f"give it with --weights {spec.source.file_name}"
        )
    return read_checkpoint(weights), f"file {weights.name}"


def _resnet_names(checkpoint: Checkpoint) -> dict[str, Tensor]:
    tensors = without_prefix(_without_foreign_head(checkpoint.tensors), WRAPPING_PREFIXES)
    if not any(name.startswith("0.") for name in tensors):
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        renamed[f"{SEQUENTIAL_NAMES.get(number, number)}.{rest}"] = tensor
    return renamed


def _without_foreign_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out a classifier beside the backbone, such as `classifier.weight` beside `backbone.0.weight`."""
    if not any(name.startswith("backbone.") for name in tensors):
        return dict(tensors)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("classifier.", "fc.", "head."))}


def _make_keras_resnet(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_BATCH_NORM_EPSILON
    for stage in ("layer2", "layer3", "layer4"):
        first, second = (network.get_submodule(f"{stage}.0.conv{number}") for number in (1, 2))
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        first.stride, second.stride = (2, 2), (1, 1)


def _swin_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to timm's names, without the classifier and the tables that follow from the geometry."""
    reference_layout = "layers.0.downsample.reduction.weight" in tensors
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("head.") or name.endswith((".relative_position_index", ".attn_mask")):
            continue
        if reference_layout:
            # The reference code merges patches at the end of a stage, timm at the beginning of the next.
            name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
        renamed[name] = tensor
    return renamed


def _swin_size(tensors: Mapping[str, Tensor], origin: str) -> SwinSize:
    embedding = tensors.get("patch_embed.proj.weight")
    blocks = {name.split(".")[3] for name in tensors if name.startswith("layers.2.blocks.")}
    width = len(embedding) if embedding is not None else 0
    for size in SWIN_SIZES:
        if (size.width, size.third_stage_depth) == (width, len(blocks)):
            return size
    known = ", ".join(f"{size.width} channels and {size.third_stage_depth} blocks" for size in SWIN_SIZES)
    raise WeightsError(
        f"{origin} is no Swin Transformer of a known size; it has {width} channels after the patch embedding and "
        f"{len(blocks)} blocks in the third stage (known: {known})"
    )
