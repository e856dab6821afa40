"""Checkpoints of the true layouts with seeded random values, and what they compute, written without the exporters.

Names, prefixes, shapes and archive formats are those of the published files. The references are torchvision's
networks and a vision transformer in plain functions, so that a mistake in the exporters cannot hide in both.
"""

from __future__ import annotations

import io
import json
import zipfile
from math import prod
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def normalised(slices: np.ndarray, normalisation: tuple) -> Tensor:
    """Grey slices [N, 224, 224] as a network's input, by torchvision's own transform."""
    rgb = torch.from_numpy(slices).unsqueeze(1).repeat(1, 3, 1, 1)
    return torchvision.transforms.Normalize(*normalisation)(rgb)


def unit(vectors: Tensor) -> np.ndarray:
    return (vectors / vectors.norm(dim=1, keepdim=True)).detach().numpy()


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Values in the range of trained ones: scales of norms and layers about 1, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            tensors[name] = values.abs() * 0.2 + 0.9
        elif len(shape) == 1 and name.endswith(("weight", "gamma")):
            tensors[name] = 1 + 0.1 * values
        elif len(shape) == 4:
            # Keeps the signal's size through a stack of convolutions, however deep.
            tensors[name] = values * (2 / prod(shape[1:])) ** 0.5
        else:
            tensors[name] = 0.04 * values
    return tensors


# Vision transformers: DINO, DINOv2, CLIP as DreamSim keeps it.


def vit_shapes(width: int, patch: int, positions: int, *, depth: int = 12, dinov2: bool = False) -> dict:
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width)}
    if dinov2:
        shapes["mask_token"] = (1, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for block in range(depth):
        layers = {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for layer, shape in layers.items():
            shapes[f"blocks.{block}.{layer}.weight"] = shape
            shapes[f"blocks.{block}.{layer}.bias"] = shape[:1]
        if dinov2:
            shapes |= {f"blocks.{block}.ls{number}.gamma": (width,) for number in (1, 2)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def vit(tensors: dict[str, Tensor], images: Tensor, *, heads: int, epsilon: float = 1e-6, quick_gelu: bool = False,
        last_norm: bool = True) -> Tensor:  # fmt: skip
    """The class token of a vision transformer, `[N, width]`."""
    width = tensors["cls_token"].shape[-1]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    kernel = tensors["patch_embed.proj.weight"]
    patches = functional.conv2d(images, kernel, tensors["patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([tensors["cls_token"].expand(len(tokens), -1, -1), tokens], dim=1) + tensors["pos_embed"]
    if "pos_drop.weight" in tensors:
        tokens = norm(tokens, "pos_drop")
    for block in range(12):
        at = f"blocks.{block}"
        qkv = linear(norm(tokens, f"{at}.norm1"), f"{at}.attn.qkv")
        query, key, value = qkv.reshape(*qkv.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1)
        update = linear((attention @ value).transpose(1, 2).flatten(2), f"{at}.attn.proj")
        tokens = tokens + update * tensors.get(f"{at}.ls1.gamma", 1)
        hidden = linear(norm(tokens, f"{at}.norm2"), f"{at}.mlp.fc1")
        hidden = hidden * torch.sigmoid(1.702 * hidden) if quick_gelu else functional.gelu(hidden)
        tokens = tokens + linear(hidden, f"{at}.mlp.fc2") * tensors.get(f"{at}.ls2.gamma", 1)
    return (norm(tokens, "norm") if last_norm else tokens)[:, 0]


def bicubic(grid: np.ndarray, size: int, scale: float) -> np.ndarray:
    """Bicubic interpolation (a = -0.75, edges repeated, not antialiased) of [M, M, D] to [size, size, D]."""

    def weights(distance: np.ndarray) -> np.ndarray:
        x, a = np.abs(distance), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    matrix = np.zeros((size, len(grid)))
    for index in range(size):
        centre = (index + 0.5) / scale - 0.5
        for neighbour in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[index, np.clip(neighbour, 0, len(grid) - 1)] += weights(np.float64(centre - neighbour))
    return np.einsum("ia,jb,abd->ijd", matrix, matrix, grid)


def dinov1(seed: int = 1, width: int = 384) -> dict[str, Tensor]:
    """`dino_deitsmall16_pretrain.pth`, `dino_vitbase16_pretrain.pth` (width 768)."""
    return random_tensors(vit_shapes(width, 16, 197), seed)


def dinov2(seed: int = 2, width: int = 384) -> dict[str, Tensor]:
    """`dinov2_vits14_pretrain.pth`, `dinov2_vitb14_pretrain.pth` (width 768): positions for 518 pixels."""
    tensors = random_tensors(vit_shapes(width, 14, 1370, dinov2=True), seed)
    # Trained positions are far from zero; only so does their interpolation show in the embedding.
    return tensors | {"pos_embed": 20 * tensors["pos_embed"]}


def dinov2_reference(tensors: dict[str, Tensor], slices: np.ndarray, heads: int = 6) -> np.ndarray:
    positions = tensors["pos_embed"]
    grid = positions[0, 1:].reshape(37, 37, -1).double().numpy()
    patches = torch.from_numpy(bicubic(grid, 16, 16.1 / 37)).reshape(1, 256, -1).float()
    fitted = tensors | {"pos_embed": torch.cat([positions[:, :1], patches], dim=1)}
    return unit(vit(fitted, normalised(slices, IMAGENET), heads=heads))


def dino_training_checkpoint(tensors: dict[str, Tensor], seed: int = 3) -> dict[str, object]:
    """DINO's `*_full_checkpoint.pth`: teacher and student with their projection heads, and the options of the run."""
    import argparse

    head = random_tensors({"mlp.0.weight": (64, tensors["norm.weight"].numel()), "last_layer.weight_g": (8, 1)}, seed)
    student = {f"module.backbone.{name}": tensor + 1 for name, tensor in tensors.items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return {
        "student": student | {f"module.head.{name}": tensor for name, tensor in head.items()},
        "teacher": teacher | {f"head.{name}": tensor for name, tensor in head.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
    }


# ResNet50 and Swin Transformer.


def resnet50(seed: int = 4) -> nn.Module:
    """Torchvision's ResNet50 with random weights, in evaluation mode."""
    network = torchvision.models.resnet50()
    _randomise(network, seed)
    return network


def keras_resnet50(seed: int = 5) -> nn.Module:
    """ResNet50 as Keras builds it: biased convolutions, strides in the first one of a block, another epsilon."""
    network = torchvision.models.resnet50()
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    _randomise(network, seed)
    return network


def _randomise(network: nn.Module, seed: int) -> None:
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if t.is_floating_point()}
    tensors = random_tensors(shapes, seed)
    network.load_state_dict(network.state_dict() | tensors)
    network.eval().requires_grad_(False)


def resnet_reference(network: nn.Module, slices: np.ndarray) -> np.ndarray:
    children = nn.Sequential(*list(network.children())[:-1])
    return unit(children(normalised(slices, HALF)).flatten(1))


def numbered(network: nn.Module) -> dict[str, Tensor]:
    """RadImageNet's PyTorch release: `backbone.` and the children of the network without its classifier, by number."""
    children = nn.Sequential(*list(network.children())[:-1])
    return {f"backbone.{name}": tensor for name, tensor in children.state_dict().items()}


def without_classifier(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}


def swin_tiny(seed: int = 6) -> nn.Module:
    """Torchvision's Swin-T with random weights, in evaluation mode."""
    network = torchvision.models.swin_t()
    _randomise(network, seed)
    return network


def swin_reference_layout(network: nn.Module) -> dict[str, Tensor]:
    """Microsoft's layout of a torchvision Swin-T: patch merging ends a stage, tables of the geometry are saved."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if name.startswith("features.0."):
            layer = {"0": "proj", "2": "norm"}[parts[2]]
            renamed[f"patch_embed.{layer}.{parts[3]}"] = tensor
        elif parts[0] == "features" and int(parts[1]) % 2:
            rest = ".".join(parts[3:]).replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            if rest == "attn.relative_position_index":
                tensor = tensor.reshape(49, 49)
            renamed[f"layers.{int(parts[1]) // 2}.blocks.{parts[2]}.{rest}"] = tensor
        elif parts[0] == "features":
            renamed[f"layers.{int(parts[1]) // 2 - 1}.downsample.{'.'.join(parts[2:])}"] = tensor
        else:
            renamed[name] = tensor
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return renamed


def swin_reference(network: nn.Module, slices: np.ndarray) -> np.ndarray:
    features = network.norm(network.features(normalised(slices, HALF)))
    return unit(features.mean(dim=(1, 2)))


# DreamSim.


def write_dreamsim_folder(folder: Path, *, ensemble: bool, seed: int = 7) -> dict[str, dict[str, Tensor]]:
    """The files of DreamSim's archive, all but the adapter's weights, and DINO's release where the package looks.

    Returns:
        The tensors of every branch.
    """
    dino = dinov1(seed, width=768)
    teacher = {f"backbone.{name}": tensor for name, tensor in dino.items()}
    widths = {"mlp.0": (2048, 768), "mlp.2": (2048, 2048), "mlp.4": (256, 2048), "last_layer": (2048, 256)}
    head = {f"module.head.{layer}.weight": torch.zeros(shape) for layer, shape in widths.items()}
    head |= {f"module.head.mlp.{layer}.bias": torch.zeros(shape) for layer, shape in ((0, 2048), (2, 2048), (4, 256))}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"teacher": teacher, "student": head}, folder / "dino_vitb16_pretrain.pth")
    branches = {"dino": dino}
    for name in ("clip", "open_clip") if ensemble else ():
        seed += 1
        shapes = vit_shapes(768, 16, 197) | {"pos_drop.weight": (768,), "pos_drop.bias": (768,), "proj": (768, 512)}
        branches[name] = random_tensors(shapes, seed)
        torch.save({"state_dict": branches[name]}, folder / f"{name}_vitb16_pretrain.pth.tar")
    return branches


def write_adapter(folder: Path, branch_count: int, *, seed: int = 20, rank: int = 16) -> dict[str, Tensor]:
    """What the peft package saves for DreamSim: LoRA of every `qkv`, by the names in the package's model."""
    import safetensors.torch

    factors = {}
    for branch in range(branch_count):
        for block in range(12):
            at = f"base_model.model.extractor_list.{branch}.model.blocks.{block}.attn.qkv"
            factors |= {f"{at}.lora_A.weight": (rank, 768), f"{at}.lora_B.weight": (3 * 768, rank)}
    tensors = {name: 2 * tensor for name, tensor in random_tensors(factors, seed).items()}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 0.5 * rank,
        "lora_dropout": 0.3,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": ["qkv"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def zipped(folder: Path, target: Path) -> Path:
    """The folder as DreamSim's release has it: one zip file."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target


def saved(document: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()
