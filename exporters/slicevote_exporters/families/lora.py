"""Merge DreamSim's LoRA weights, low-rank updates of linear layers, into those layers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from slicevote_exporters.errors import WeightsError
from slicevote_exporters.weights import read_checkpoint

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Written by newer and older versions of the peft package."""

UNKNOWN_OPTIONS = ("use_rslora", "use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")
"""Options of peft that change the arithmetic; DreamSim uses none of them."""

KEY = re.compile(
    r"^(?:base_model\.model\.)+extractor_list\.(?P<branch>\d+)\.model\.(?P<layer>.+)"
    r"\.lora_(?P<factor>[AB])(?:\.default)?\.weight$"
)


@dataclass(frozen=True)
class Adapter:
    """The factors of what is added to the weights of the branches' linear layers."""

    scale: float
    """lora_alpha / r."""
    factors: Mapping[tuple[int, str], tuple[Tensor, Tensor]]
    """A `[rank, inputs]` and B `[outputs, rank]`, by branch and name of the layer."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The factors and the scale by name, for the checksum."""
        named = {
            f"lora.{branch}.{layer}.{letter}": tensor
            for (branch, layer), pair in self.factors.items()
            for letter, tensor in zip("AB", pair, strict=True)
        }
        return {**named, "lora.scale": torch.tensor(self.scale)}


def read_adapter(folder: Path, branch_count: int) -> Adapter:
    """Read an adapter written by the peft package.

    Args:
        folder: The folder of `adapter_config.json` and the weights.
        branch_count: Number of branches that it must adapt.

    Raises:
        WeightsError: A file is missing or cannot be understood, or not every branch is adapted.
    """
    scale = _read_scale(folder / CONFIG_FILE)
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(f"DreamSim's checkpoint has no {folder.name}/{' or '.join(WEIGHTS_FILES)}")
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in read_checkpoint(path).tensors.items():
        match = KEY.match(name)
        if match is None:
            raise WeightsError(f"{folder.name}/{path.name} has {name}, which is no LoRA weight of DreamSim")
        halves.setdefault((int(match["branch"]), match["layer"]), {})[match["factor"]] = tensor
    lone = [layer for (_, layer), pair in halves.items() if len(pair) != 2]
    if lone:
        raise WeightsError(f"{folder.name}/{path.name} has only one of the two factors of {lone[0]}")
    adapted = sorted({branch for branch, _ in halves})
    if adapted != list(range(branch_count)):
        raise WeightsError(
            f"{folder.name}/{path.name} adapts the branches {adapted}, this model has {branch_count}; "
            "it is another model's"
        )
    return Adapter(scale, {key: (pair["A"], pair["B"]) for key, pair in halves.items()})


def merge(networks: Sequence[nn.Module], adapter: Adapter) -> None:
    """Add `scale * B @ A` to the weight of every linear layer that the adapter names.

    Raises:
        WeightsError: The adapter names a layer that does not exist, or its factors do not fit the layer.
    """
    for (branch, name), (down, up) in adapter.factors.items():
        try:
            layer = networks[branch].get_submodule(name)
        except AttributeError as error:
            raise WeightsError(f"the LoRA weights name {name} of branch {branch}, which does not exist") from error
        if not isinstance(layer, nn.Linear) or (len(up), down.shape[-1]) != tuple(layer.weight.shape):
            raise WeightsError(f"the LoRA weights of {name} of branch {branch} do not fit that layer")
        with torch.no_grad():
            layer.weight += adapter.scale * (up.float() @ down.float())


def _read_scale(path: Path) -> float:
    place = f"{path.parent.name}/{path.name}"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        scale = float(config["lora_alpha"]) / int(config["r"])
    except FileNotFoundError as error:
        raise WeightsError(f"DreamSim's checkpoint has no {place}: another model's, or incomplete") from error
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{place} of DreamSim's checkpoint cannot be understood") from error
    unknown = [option for option in UNKNOWN_OPTIONS if config.get(option)]
    if config.get("bias", "none") != "none":
        unknown.append("bias")
    if unknown:
        raise WeightsError(f"{place} uses {', '.join(unknown)}, unlike DreamSim, and is not supported")
    return scale
