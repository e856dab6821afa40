"""One export of every family, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from slicevote_exporters import graph
from slicevote_exporters.export import ExportReport, ExportRequest, export_backbone
from slicevote_exporters.registry import Precision, find

from tests.exporters import checkpoints as layouts

Embed = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A backbone whose checkpoint has been written, and what that checkpoint computes."""

    name: str
    weights: Path | None
    reference: Embed | None


def graph_of(path: Path) -> onnx.ModelProto:
    """An exported file as it was before its manifest was put in."""
    model = onnx.load(str(path))
    del model.metadata_props[:]
    return model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Leaves a core to whatever else is running; the exports are compared, not timed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return a function from a backbone's name to its case."""
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            made[name] = WRITERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return case


@pytest.fixture(scope="session")
def exported(cases: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ExportReport]:
    """Return a function that exports a backbone by name and precision, once."""
    made: dict[tuple[str, str], ExportReport] = {}

    def export(name: str, precision: Precision = "fp32") -> ExportReport:
        if (name, precision) in made:
            return made[name, precision]
        out = tmp_path_factory.mktemp("exports") / f"{name}-{precision}.onnx"
        request = ExportRequest(find(name), out, weights=cases(name).weights, precision=precision)
        with pytest.MonkeyPatch.context() as patch:
            if precision != "fp32":
                # The graph is the same in every precision until it is converted; tracing takes the longest.
                traced = graph_of(export(name).path)
                patch.setattr(graph, "to_onnx", lambda serving: traced)
            made[name, precision] = export_backbone(request)
        return made[name, precision]

    return export


def _efficientnet(folder: Path) -> Case:
    return Case("efficientnet-lite0", None, None)


def _dinov1(folder: Path, name: str = "dinov1-vits16", width: int = 384, heads: int = 6) -> Case:
    tensors = layouts.dinov1(width=width)
    weights = folder / find(name).source.file_name
    torch.save(tensors, weights)
    images = layouts.normalised
    return Case(name, weights, lambda x: layouts.unit(layouts.vit(tensors, images(x, layouts.IMAGENET), heads=heads)))


def _dinov2(folder: Path, name: str = "dinov2-vits14", width: int = 384, heads: int = 6) -> Case:
    tensors = layouts.dinov2(width=width)
    weights = folder / find(name).source.file_name
    torch.save(tensors, weights)
    return Case(name, weights, lambda slices: layouts.dinov2_reference(tensors, slices, heads=heads))


def _resnet50(folder: Path) -> Case:
    network = layouts.resnet50()
    weights = folder / "ResNet50.pt"
    torch.save(layouts.numbered(network), weights)
    return Case("radimagenet-resnet50", weights, lambda slices: layouts.resnet_reference(network, slices))


def _swin(folder: Path) -> Case:
    network = layouts.swin_tiny()
    weights = folder / "SwinTransformer.pt"
    torch.save({"model": layouts.swin_reference_layout(network)}, weights)
    return Case("radimagenet-swin", weights, lambda slices: layouts.swin_reference(network, slices))


def _dreamsim(folder: Path, name: str = "dreamsim-dino-vitb16") -> Case:
    ensemble = name == "dreamsim-ensemble"
    unpacked = folder / "models"
    layouts.write_dreamsim_folder(unpacked, ensemble=ensemble)
    adapter = "ensemble_lora" if ensemble else "dino_vitb16_single_lora"
    layouts.write_adapter(unpacked / adapter, 3 if ensemble else 1)
    return Case(name, layouts.zipped(unpacked, folder / find(name).source.file_name), None)


WRITERS: dict[str, Callable[[Path], Case]] = {
    "efficientnet-lite0": _efficientnet,
    "dinov1-vits16": _dinov1,
    "dinov1-vitb16": lambda folder: _dinov1(folder, "dinov1-vitb16", 768, 12),
    "dinov2-vits14": _dinov2,
    "dinov2-vitb14": lambda folder: _dinov2(folder, "dinov2-vitb14", 768, 12),
    "radimagenet-resnet50": _resnet50,
    "radimagenet-swin": _swin,
    "dreamsim-dino-vitb16": _dreamsim,
    "dreamsim-ensemble": lambda folder: _dreamsim(folder, "dreamsim-ensemble"),
}
