"""The serving graph: grey slices in, unit vectors out, with everything that is particular to a backbone inside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from slicevote_exporters.registry import Normalisation


@dataclass(frozen=True)
class Branch:
    """A network from normalised RGB `[N, 3, 224, 224]` to features `[N, D]`, and its normalisation."""

    network: nn.Module
    normalisation: Normalisation


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights."""

    branches: tuple[Branch, ...]
    """Their features are concatenated in this order."""
    weights: Mapping[str, Tensor]
    """The tensors as they were read, before anything was computed from them: what the manifest's checksum is of."""
    weights_source: str
    """Where they came from: a package, a hub's address, the name of a file (never its folder)."""
    pooling: str = ""
    """How features become one vector, where only the network that was built tells; else the registry says it."""
    mean_centred: bool = False
    """Subtract each vector's own mean before its length becomes 1 (DreamSim)."""
    notes: tuple[str, ...] = ()
    """What was done to the weights, for the person who exports."""

    @property
    def parameter_count(self) -> int:
        """Number of weights of all branches."""
        return sum(parameter.numel() for branch in self.branches for parameter in branch.network.parameters())


class ServingGraph(nn.Module):
    """What is exported: float32 `[N, 224, 224]` grey values in [0, 1] to float32 `[N, D]` of unit length."""

    def __init__(self, backbone: LoadedBackbone) -> None:
        super().__init__()
        self.networks = nn.ModuleList(branch.network for branch in backbone.branches)
        self.mean_centred = backbone.mean_centred
        for index, branch in enumerate(backbone.branches):
            for name, values in (("mean", branch.normalisation.mean), ("std", branch.normalisation.std)):
                self.register_buffer(f"{name}_{index}", torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, slices: Tensor) -> Tensor:
        """Embeds slices.

        Args:
            slices: float32 `[N, 224, 224]`, grey values in [0, 1].

        Returns:
            float32 `[N, D]`, unit length.
        """
        rgb = slices.unsqueeze(1).expand(-1, 3, -1, -1)
        features = [
            network((rgb - self.get_buffer(f"mean_{index}")) / self.get_buffer(f"std_{index}"))
            for index, network in enumerate(self.networks)
        ]
        vectors = features[0] if len(features) == 1 else torch.cat(features, dim=-1)
        if self.mean_centred:
            vectors = vectors - vectors.mean(dim=-1, keepdim=True)
        return functional.normalize(vectors, dim=-1)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, in order of the names, as lower-case hex."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
