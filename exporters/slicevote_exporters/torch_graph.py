"""The graph that is exported, as a PyTorch module: grey slices in, unit vectors out, everything particular inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slicevote_exporters import built
from slicevote_exporters.built import FloatArray
from slicevote_exporters.parity import batches
from slicevote_exporters.registry import Normalisation


@dataclass(frozen=True)
class Branch:
    """A network from normalised RGB `[N, 3, 224, 224]` to features `[N, D]`, and its normalisation."""

    network: nn.Module
    normalisation: Normalisation


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights, not yet exported."""

    branches: tuple[Branch, ...]
    """Their features are concatenated in this order."""
    weights: Mapping[str, Tensor]
    """The tensors as they were read, before anything is computed from them; the manifest's checksum covers these."""
    weights_source: str
    """Where they came from: a package, a URL, or a file's name (never its folder)."""
    pooling: str = ""
    """How features become one vector, where only the network itself can tell; otherwise the registry says it."""
    mean_centred: bool = False
    """Whether each vector's own mean is subtracted before it is scaled to unit length (DreamSim)."""
    notes: tuple[str, ...] = ()
    """What was done to the weights, for the person who exports."""

    @property
    def parameter_count(self) -> int:
        """Number of weights of all branches."""
        return sum(parameter.numel() for branch in self.branches for parameter in branch.network.parameters())


class ServingGraph(nn.Module):
    """The module that is exported: grey slices float32 `[N, 224, 224]` in [0, 1] to unit vectors float32 `[N, D]`."""

    def __init__(self, backbone: LoadedBackbone) -> None:
        super().__init__()
        self.networks = nn.ModuleList(branch.network for branch in backbone.branches)
        self.mean_centred = backbone.mean_centred
        for index, branch in enumerate(backbone.branches):
            for name, values in (("mean", branch.normalisation.mean), ("std", branch.normalisation.std)):
                self.register_buffer(f"{name}_{index}", torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, slices: Tensor) -> Tensor:
        """Embed slices.

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


def embed_in_torch(serving: ServingGraph, slices: FloatArray) -> FloatArray:
    """Embed float32 `[N, 224, 224]` in [0, 1] with PyTorch in fp32; return float32 `[N, D]`."""
    with torch.inference_mode(), _one_torch_thread():
        return np.concatenate([serving(torch.from_numpy(batch)).numpy() for batch in batches(slices)])


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of PyTorch's tensors, as `built.weights_sha256` defines it, in lower-case hex."""
    return built.weights_sha256(
        (
            name,
            str(weights[name].dtype).removeprefix("torch."),
            tuple(weights[name].shape),
            weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name in sorted(weights)
    )
