"""Any model of timm, with timm's own weights or a file in timm's layout."""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from slicevote.contract import INPUT_SIZE
from torch import Tensor, nn

from slicevote_exporters.errors import HubUnreachable, UnknownBackbone, WeightsError
from slicevote_exporters.hub import unreachable
from slicevote_exporters.registry import TIMM_PREFIX, BackboneSpec, Normalisation, WeightsSource
from slicevote_exporters.torch_graph import Branch, LoadedBackbone
from slicevote_exporters.weights import load_strictly, read_checkpoint

POOLINGS = {"avg": "average pooling", "token": "class token", "map": "attention pooling", "max": "maximum pooling"}
LONGEST_NAME = 64


def describe(name: str) -> BackboneSpec:
    """Describe the model behind `timm:NAME` as timm does.

    Raises:
        UnknownBackbone: timm has no such model, or no such pretrained tag of it.
    """
    model_name = name.removeprefix(TIMM_PREFIX)
    try:
        config: Any = timm.get_pretrained_cfg(model_name, allow_unregistered=False)
    except RuntimeError as error:
        known = timm.list_pretrained() if "." in model_name else timm.list_models()
        close = difflib.get_close_matches(model_name, known, n=3, cutoff=0.5)
        hint = f"; the closest are {', '.join(close)}" if close else ""
        raise UnknownBackbone(f"timm {timm.__version__} has no model {model_name!r}{hint}") from error
    mean, std = tuple(config.mean), tuple(config.std)
    return BackboneSpec(
        name=re.sub(r"[^a-z0-9._-]", "-", f"timm-{model_name}".lower())[:LONGEST_NAME],
        family="timm",
        dimension=0,
        parameter_count=0,
        licence=config.license or "not stated by timm",
        source=_source(config),
        normalisations=(Normalisation(mean, std),),
        pooling="",
        loader="timm_models:load",
        architecture=model_name,
    )


def _source(config: Any) -> WeightsSource:
    if not config.has_weights:
        return WeightsSource(need="file", description="no pretrained weights in timm", file_name="model.safetensors")
    if config.hf_hub_id:
        hub = config.hf_hub_id
        address = f"https://huggingface.co/{hub}"
        return WeightsSource("hub", f"Hugging Face {hub}", file_name="model.safetensors", url=address)
    return WeightsSource("hub", config.url, file_name=config.url.rsplit("/", 1)[-1], url=config.url)


def load(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone:
    """Build the model for 224 x 224 and load its weights, without the classifier.

    Position embeddings for another input size are interpolated by timm.

    Raises:
        HubUnreachable: No file is given and timm cannot download its own.
        WeightsError: The file cannot be read or does not fit, or the model cannot take 224 x 224.
    """
    if weights is None:
        if spec.source.need == "file":
            raise WeightsError(f"timm has no pretrained weights for {spec.architecture}; give your own with --weights")
        network = _build(spec, pretrained=True)
        source = spec.source.description
        network.reset_classifier(0)  # type: ignore[operator]
    else:
        network = _build(spec, pretrained=False)
        network.reset_classifier(0)  # type: ignore[operator]
        load_strictly(network, _fitted(network, weights), str(weights))
        source = f"file {weights.name}"
    pooling = str(getattr(network, "global_pool", "") or "")
    if not pooling.isidentifier():
        pooling = str(getattr(getattr(network, "global_pool", None), "pool_type", "timm's own"))
    return LoadedBackbone(
        branches=(Branch(network, spec.normalisations[0]),),
        weights=dict(network.state_dict()),
        weights_source=source,
        pooling=POOLINGS.get(pooling, pooling),
    )


def _build(spec: BackboneSpec, *, pretrained: bool) -> nn.Module:
    """Build the model with its classifier, so that timm too loads strictly, at 224 pixels if the size can be chosen."""
    config: Any = timm.get_pretrained_cfg(spec.architecture)
    at_our_size: dict[str, Any] = {"img_size": INPUT_SIZE}
    for arguments in ({},) if config.input_size[-1] == INPUT_SIZE else (at_our_size, {}):
        try:
            with _quiet_hub():
                network: nn.Module = timm.create_model(spec.architecture, pretrained=pretrained, **arguments)
        except TypeError:
            # A convolutional network takes no img_size; it runs at any size.
            continue
        except (OSError, RuntimeError, ImportError) as error:
            if pretrained and _is_of_the_network(error):
                raise HubUnreachable(unreachable(spec, spec.source.url, error)) from error
            raise WeightsError(f"timm cannot build {spec.architecture}: {error}") from error
        return network
    raise WeightsError(f"timm cannot build {spec.architecture} for {INPUT_SIZE} x {INPUT_SIZE} pixels")


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence Hugging Face's client, which logs every retry; the error says it once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_of_the_network(error: BaseException) -> bool:
    """Tell a missing connection, an OSError of Hugging Face's client and of urllib, from a bad fit, a RuntimeError."""
    return isinstance(error, OSError) or "offline" in str(error).lower()


def _fitted(network: nn.Module, weights: Path) -> dict[str, Tensor]:
    """Return the file's tensors by timm's names, converted by timm itself, without the classifier."""
    tensors: dict[str, Tensor] = dict(read_checkpoint(weights).tensors)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            tensors = dict(convert(tensors, network))
        except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
            raise WeightsError(f"{weights} does not fit {type(network).__name__}; give its own checkpoint") from error
    config: Any = getattr(network, "pretrained_cfg", {})
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = network.state_dict()
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in own or not any(name.startswith(f"{head}.") for head in heads)
    }
