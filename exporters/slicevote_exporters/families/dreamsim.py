"""DreamSim: one or three vision transformers with merged LoRA weights, concatenated and mean-centred.

The exported function is `embed` of the dreamsim package with `normalize_embeds`, from the package's own checkpoint
files. The networks are timm's, because those can be exported; the tests compare them with the package.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from slicevote_exporters.errors import WeightsError
from slicevote_exporters.families import lora
from slicevote_exporters.families.dino import backbone_tensors
from slicevote_exporters.hub import fetch, fetch_checkpoint
from slicevote_exporters.registry import DINOV1_VITB16, BackboneSpec
from slicevote_exporters.torch_graph import Branch, LoadedBackbone
from slicevote_exporters.weights import Checkpoint, load_strictly, read_checkpoint

DINO_FILE = DINOV1_VITB16.source.file_name
DINO_WITH_HEAD = "dino_vitb16_pretrain.pth"
"""DreamSim's own file of DINO. The package takes only a projection head from it, which `embed` does not use."""


@dataclass(frozen=True)
class ClipTower:
    """An image tower of CLIP, which DreamSim keeps in DINO's layout, with its projection."""

    file_name: str
    activation: str
    """OpenAI's weights were trained with an approximation of GELU, OpenCLIP's with GELU itself."""


@dataclass(frozen=True)
class Variant:
    """One of DreamSim's models: DINO ViT-B/16, alone or followed by CLIP towers."""

    adapter_folder: str
    towers: tuple[ClipTower, ...] = ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """Paths of the files in DreamSim's archive that may be used."""
        adapter = (f"{self.adapter_folder}/{name}" for name in (lora.CONFIG_FILE, *lora.WEIGHTS_FILES))
        dino = (DINO_WITH_HEAD, DINO_FILE, f"checkpoints/{DINO_FILE}")
        return (*dino, *(tower.file_name for tower in self.towers), *adapter)


VARIANTS = {
    "dino_vitb16": Variant("dino_vitb16_single_lora"),
    "ensemble": Variant(
        "ensemble_lora",
        (
            ClipTower("clip_vitb16_pretrain.pth.tar", "quick_gelu"),
            ClipTower("open_clip_vitb16_pretrain.pth.tar", "gelu"),
        ),
    ),
}


class ProjectedTower(nn.Module):
    """A CLIP tower and the matrix that projects its class token to the space shared with text."""

    def __init__(self, tower: nn.Module, projection: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.projection = nn.Parameter(projection.float(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images float32 `[N, 3, 224, 224]`; return float32 `[N, 512]`."""
        projected: Tensor = self.tower(images) @ self.projection
        return projected


def load(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build DreamSim's networks, load their checkpoints, and merge the LoRA weights into them.

    Args:
        spec: The registry's entry; its `architecture` is one of `VARIANTS`.
        weights: DreamSim's checkpoint archive (a zip file), or the folder that it was unpacked to (the package's
            `cache_dir`); None to download the archive.

    Raises:
        HubUnreachable: A file that is not given cannot be downloaded.
        WeightsError: A file is missing, cannot be read or does not fit.
    """
    variant = VARIANTS[spec.architecture]
    archive = _fetched_archive(spec) if weights is None else weights
    tensors: dict[str, Tensor] = {}
    with _unpacked(archive, variant) as folder:
        dino, dino_tensors = _load_dino(folder, spec)
        tensors |= _prefixed("0", dino_tensors)
        networks = [dino]
        heads: list[nn.Module] = [dino]
        for index, tower in enumerate(variant.towers, start=1):
            network, tower_tensors = _load_tower(folder, tower)
            tensors |= _prefixed(str(index), tower_tensors)
            networks.append(network)
            heads.append(ProjectedTower(network, tower_tensors["proj"]))
        adapter = lora.read_adapter(folder / variant.adapter_folder, len(networks))
    lora.merge(networks, adapter)
    # DreamSim takes DINO's class token after the last block and before the last norm.
    dino.norm = nn.Identity()
    return LoadedBackbone(
        branches=tuple(Branch(head, how) for head, how in zip(heads, spec.normalisations, strict=True)),
        weights={**tensors, **adapter.tensors},
        weights_source=spec.source.url if weights is None else f"file {weights.name}",
        mean_centred=True,
        notes=(f"merged the LoRA weights into {len(adapter.factors)} layers",),
    )


def _fetched_archive(spec: BackboneSpec) -> Path:
    archive = fetch(spec.source.url, spec)
    if not zipfile.is_zipfile(archive):
        archive.unlink()
        raise WeightsError(f"{spec.source.url} did not answer with a zip file; download it by other means")
    return archive


@contextmanager
def _unpacked(archive: Path, variant: Variant) -> Iterator[Path]:
    """Yield the folder of DreamSim's files: the given one, or a temporary one with the unpacked archive."""
    if archive.is_dir():
        yield archive
        return
    if not zipfile.is_zipfile(archive):
        raise WeightsError(
            f"{archive} is neither DreamSim's checkpoint archive (a whole zip file) nor the folder that it was "
            "unpacked to; fetch it again and compare its size"
        )
    with tempfile.TemporaryDirectory(prefix="slicevote-export-") as temporary, zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            # Only known files are unpacked, so that no entry can land outside the folder.
            if name.removeprefix("./") in variant.file_names:
                _unpack(packed, name, Path(temporary) / name.removeprefix("./"))
        yield Path(temporary)


def _unpack(packed: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        with packed.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise WeightsError(f"{packed.filename} is damaged at {name} ({error}); fetch it again") from error


def _load_dino(folder: Path, spec: BackboneSpec) -> tuple[nn.Module, Mapping[str, Tensor]]:
    checkpoint = _dino_checkpoint(folder, spec)
    tensors = backbone_tensors(checkpoint)
    network: nn.Module = timm.create_model(DINOV1_VITB16.architecture, pretrained=False, num_classes=0)
    load_strictly(network, tensors, checkpoint.origin)
    return network, tensors


def _dino_checkpoint(folder: Path, spec: BackboneSpec) -> Checkpoint:
    """Return DINO ViT-B/16 as its authors released it, which is the teacher of their training.

    The package always downloads it from them. Here the folder comes first: the released file, where the package leaves
    it or beside the others, then the teacher in DreamSim's own file of DINO.
    """
    for path in (folder / DINO_FILE, folder / "checkpoints" / DINO_FILE):
        if path.is_file():
            return read_checkpoint(path)
    with_head = folder / DINO_WITH_HEAD
    if with_head.is_file():
        checkpoint = read_checkpoint(with_head)
        if checkpoint.wrapper != "student" and "cls_token" in backbone_tensors(checkpoint):
            return checkpoint
    advice = f"{DINO_FILE} beside the unpacked files of {spec.source.file_name}"
    return fetch_checkpoint(DINOV1_VITB16.source.url, replace(spec, source=replace(spec.source, file_name=advice)))


def _load_tower(folder: Path, tower: ClipTower) -> tuple[nn.Module, Mapping[str, Tensor]]:
    path = folder / tower.file_name
    if not path.is_file():
        raise WeightsError(
            f"DreamSim's checkpoint has no {tower.file_name}; it belongs to another model, or is incomplete"
        )
    checkpoint = read_checkpoint(path)
    network = _clip_network(tower.activation)
    projection = checkpoint.tensors.get("proj")
    if projection is None or projection.ndim != 2 or len(projection) != network.num_features:
        raise WeightsError(f"{checkpoint.origin} has no matrix `proj` with {network.num_features} rows")
    # DreamSim put CLIP's first norm in place of DINO's position dropout.
    renamed = {
        name.replace("pos_drop.", "norm_pre."): tensor for name, tensor in checkpoint.tensors.items() if name != "proj"
    }
    load_strictly(network, renamed, checkpoint.origin)
    return network, checkpoint.tensors


def _clip_network(activation: str) -> nn.Module:
    network: nn.Module = timm.create_model(
        "vit_base_patch16_224",
        pretrained=False,
        num_classes=0,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer=activation,
    )
    # DINO's layout has a bias in the patch embedding, CLIP has none.
    embedding = network.get_submodule("patch_embed.proj")
    assert isinstance(embedding, nn.Conv2d)
    embedding.bias = nn.Parameter(torch.zeros(embedding.out_channels))
    return network


def _prefixed(branch: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{branch}.{name}": tensor for name, tensor in tensors.items()}
