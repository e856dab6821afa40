"""DINO (version 1) and DINOv2: vision transformers whose embedding is the class token after the last norm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from slicevote.contract import INPUT_SIZE
from torch import Tensor, nn
from torch.nn import functional

from slicevote_exporters.hub import fetch_checkpoint
from slicevote_exporters.registry import BackboneSpec
from slicevote_exporters.torch_graph import Branch, LoadedBackbone
from slicevote_exporters.weights import Checkpoint, load_strictly, read_checkpoint, without_prefix

PROJECTION_HEADS = ("head.", "dino_head.", "ibot_head.")
"""Prefixes beside `backbone.` in training checkpoints of DINO and DINOv2."""

DINOV2_OFFSET = 0.1
"""Added by DINOv2 to the number of patches per side before it interpolates (its `interpolate_offset`)."""


def load_dinov1(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build a ViT of DINO and load its checkpoint.

    Accepted are the authors' `*_pretrain.pth`, their full training checkpoints (of which the teacher is taken, as in
    their evaluation, without its projection head), and timm's safetensors.

    Raises:
        HubUnreachable: No file is given and the authors' cannot be downloaded.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    checkpoint, source = _checkpoint(spec, weights)
    tensors = backbone_tensors(checkpoint)
    network: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0)
    load_strictly(network, tensors, checkpoint.origin)
    notes = (f"took the weights of the {checkpoint.wrapper} network",) if checkpoint.wrapper else ()
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),), weights=tensors, weights_source=source, notes=notes
    )


def load_dinov2(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build a ViT of DINOv2 for 224 x 224 and load its checkpoint.

    The checkpoint's position embeddings are for 518 x 518 (37 x 37 patches). They are interpolated to 16 x 16 here,
    once, as DINOv2's own code does in every forward pass: bicubic, not antialiased, at a scale of 16.1 / 37.

    Raises:
        HubUnreachable: No file is given and the authors' cannot be downloaded.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    checkpoint, source = _checkpoint(spec, weights)
    # The mask token belongs to the training loss; no forward pass reads it.
    tensors = {name: tensor for name, tensor in backbone_tensors(checkpoint).items() if name != "mask_token"}
    network: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0, img_size=INPUT_SIZE)
    positions = tensors.get("pos_embed")
    expected = network.get_parameter("pos_embed")
    fitted: dict[str, Tensor] = dict(tensors)
    notes: tuple[str, ...] = ()
    if positions is not None and _is_square_grid(positions) and positions.shape != expected.shape:
        fitted["pos_embed"] = interpolate_positions(positions, expected.shape[1] - 1)
        notes = (f"interpolated {positions.shape[1] - 1} position embeddings to {expected.shape[1] - 1}",)
    load_strictly(network, fitted, checkpoint.origin)
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),), weights=tensors, weights_source=source, notes=notes
    )


def interpolate_positions(positions: Tensor, patch_count: int) -> Tensor:
    """Interpolate position embeddings as DINOv2 does (`interpolate_pos_encoding` with its default offset).

    Args:
        positions: float `[1, 1 + M * M, D]`, the class token's first.
        patch_count: Number of patches to interpolate to, a square number.

    Returns:
        float32 `[1, 1 + patch_count, D]`.
    """
    old_side, new_side = round((positions.shape[1] - 1) ** 0.5), round(patch_count**0.5)
    grid = positions[:, 1:].float().reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    scale = (new_side + DINOV2_OFFSET) / old_side
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def backbone_tensors(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Return the backbone's tensors without the prefixes `module.` and `backbone.` and without the projection head."""
    tensors = without_prefix(checkpoint.tensors, ("module.",))
    if not any(name.startswith("backbone.") for name in tensors):
        return tensors
    return {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if not name.startswith(PROJECTION_HEADS)
    }


def _checkpoint(spec: BackboneSpec, weights: Path | None) -> tuple[Checkpoint, str]:
    if weights is None:
        return fetch_checkpoint(spec.source.url, spec), spec.source.url
    return read_checkpoint(weights), f"file {weights.name}"


def _is_square_grid(positions: Tensor) -> bool:
    patches = positions.shape[1] - 1 if positions.ndim == 3 else 0
    return patches > 0 and round(patches**0.5) ** 2 == patches
