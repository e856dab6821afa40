"""Benchmark the embedder against the runtimes themselves, and precisions and runtimes against each other.

Weights of the vision transformers and of ResNet50 are seeded random values in the true layout: time does not depend on
them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slicevote_server.embedding import Embedder
from slicevote_server.runtime import RuntimeSettings, open_runtime
from slicevote_server.runtime.openvino_model import has_bf16

from benchmarks.measure import Result, Sample, in_turns
from benchmarks.search import bare_session
from benchmarks.serving import export
from tests.exporters import checkpoints

BATCH = 8
SLICES = 16


@dataclass(frozen=True)
class Case:
    """One family that is measured.

    Attributes:
        label: How the figures call it.
        backbone: What the exporter calls it.
        checkpoint: Makes its weights; None where they come with a package.
        precisions: Which files are made of it.
        eager: Makes the same network for eager PyTorch.
    """

    label: str
    backbone: str
    checkpoint: Callable[[], Any] | None
    precisions: tuple[str, ...]
    eager: str


def _resnet50() -> Any:
    return checkpoints.numbered(checkpoints.resnet50())


CASES = (
    Case("lite0", "efficientnet-lite0", None, ("fp32", "fp16"), "tf_efficientnet_lite0"),
    Case("vits16", "dinov1-vits16", lambda: checkpoints.dinov1(1, 384), ("fp32", "int8"), "vit_small_patch16_224"),
    Case("vitb16", "dinov1-vitb16", lambda: checkpoints.dinov1(1, 768), ("fp32", "int8"), "vit_base_patch16_224"),
    Case("resnet50", "radimagenet-resnet50", _resnet50, ("fp32",), "resnet50"),
)


def measure(folder: Path) -> Iterator[Result]:
    """Measure every family in every precision."""
    slices = np.random.default_rng(0).random((SLICES, 224, 224), dtype=np.float32)
    for case in CASES:
        files = {precision: export_case(case, precision, folder) for precision in case.precisions}
        yield from _speed(case, files, slices)
        for precision, path in files.items():
            yield from _burden(f"{case.label},{precision}", path)


def export_case(case: Case, precision: str, folder: Path) -> Path:
    """Export one file, once."""
    options = ["--precision", precision, "--name", f"{case.label}-{precision}"]
    if case.checkpoint is None:
        return export(case.backbone, folder / precision, *options)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pth"
        torch.save(case.checkpoint(), weights)
        return export(case.backbone, folder / precision, *options, "--weights", str(weights))


def _speed(case: Case, files: dict[str, Path], slices: np.ndarray) -> Iterator[Result]:
    sides: dict[str, Callable[[], object]] = {"torch": _eager(case.eager, slices)}
    embedders = []
    for precision, path in files.items():
        session = bare_session(path)
        embedder = Embedder(open_runtime(path, precision, RuntimeSettings("cpu")), batch_size=BATCH)
        embedders.append(embedder)
        sides[f"bare {precision}"] = lambda session=session: _batches(
            lambda part: session.run(None, {"slices": part}), slices
        )
        sides[f"ours {precision}"] = lambda embedder=embedder: embedder.submit(slices).result()
    if has_bf16():
        quick = open_runtime(files["fp32"], "fp32", RuntimeSettings("openvino-bf16"))
        sides["bf16"] = lambda: _batches(quick.embed, slices)
    samples = in_turns(sides, runs=7)
    for embedder in embedders:
        embedder.close()
    for precision in files:
        yield _speedup(f"embedder_over_bare_ort[{case.label},{precision}]", samples[f"ours {precision}"],
                       samples[f"bare {precision}"], "bare ONNX Runtime, the same file, batches of 8")  # fmt: skip
        yield _speedup(f"embedder_over_torch[{case.label},{precision}]", samples[f"ours {precision}"],
                       samples["torch"], "eager PyTorch, fp32, the same architecture, batches of 8")  # fmt: skip
    if "int8" in files:
        yield _speedup(f"int8_over_fp32[{case.label}]", samples["ours int8"], samples["ours fp32"],
                       "the same backbone in fp32, ONNX Runtime")  # fmt: skip
    if "bf16" in samples:
        yield _speedup(f"openvino_bf16_over_ort[{case.label}]", samples["bf16"], samples["bare fp32"],
                       "bare ONNX Runtime, fp32, batches of 8", _processor())  # fmt: skip


def _burden(label: str, path: Path) -> Iterator[Result]:
    """Measure file, opening and memory, in a process that does nothing else."""
    yield Result(f"file_size[{label}]", path.stat().st_size / 2**20, "MiB", "lower", "", "the ONNX file")
    command = [sys.executable, "-m", "benchmarks.loading", str(path)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    middle = sorted(found, key=lambda entry: entry["seconds"])[1]
    yield Result(f"load_time[{label}]", middle["seconds"], "s", "lower", "", "description and session; median of 3")
    yield Result(f"resident_memory[{label}]", middle["mebibytes"], "MiB", "lower", "",
                 "growth from before loading to after a batch of 8; median of 3")  # fmt: skip


def _eager(architecture: str, slices: np.ndarray) -> Callable[[], object]:
    import timm

    network = timm.create_model(architecture, pretrained=False, num_classes=0).eval()

    def forward(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(part)[:, None].expand(-1, 3, -1, -1)).numpy()

    return lambda: _batches(forward, slices)


def _batches(compute: Callable[[np.ndarray], object], slices: np.ndarray) -> None:
    for start in range(0, len(slices), BATCH):
        compute(slices[start : start + BATCH])


def _speedup(name: str, ours: Sample, theirs: Sample, reference: str, note: str = "") -> Result:
    """Return how many times as many slices per second our embedder embeds."""
    rate = SLICES / ours.median_s
    described = f"{rate:.1f} slices a second; ours {ours}, reference {theirs}, {len(ours.times_s)} runs in turn. {note}"
    return Result(name, theirs.median_s / ours.median_s, "x", "higher", reference, described.strip())


def _processor() -> str:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return f"this processor has {', '.join(units) or 'no bf16 units'}"
