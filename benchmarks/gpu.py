"""Benchmark GPU providers against ONNX Runtime and PyTorch themselves, and compare embeddings with the CPU's.

Needs a GPU and onnxruntime-gpu; `python -m benchmarks gpu` runs it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from slicevote_server.embedding import Embedder
from slicevote_server.runtime import RuntimeSettings, open_runtime
from slicevote_server.runtime.onnx_session import CUDA, has_provider

from benchmarks.backbones import CASES, export_case
from benchmarks.measure import Result, in_turns

BATCHES = (1, 8, 32, 128)
SLICES = 256


def measure(folder: Path, provider: str = "cuda") -> Iterator[Result]:
    """Measure every family in fp32, embedder against bare ONNX Runtime and eager PyTorch, all on the GPU."""
    if not has_provider(CUDA) and provider != "cpu":
        return
    slices = np.random.default_rng(0).random((SLICES, 224, 224), dtype=np.float32)
    for case in CASES:
        path = export_case(case, "fp32", folder)
        on_cpu = open_runtime(path, "fp32", RuntimeSettings("cpu"))
        on_gpu = open_runtime(path, "fp32", RuntimeSettings(provider))
        expected, computed = on_cpu.embed(slices[:16]), on_gpu.embed(slices[:16])
        cosines = (expected * computed).sum(axis=1)
        yield Result(f"gpu_least_cosine[{case.label}]", float(cosines.min()), "", "higher", "the CPU provider",
                     f"16 slices; on {on_gpu.numerics}")  # fmt: skip
        session = onnxruntime.InferenceSession(
            str(path), providers=[CUDA if provider != "cpu" else "CPUExecutionProvider"]
        )
        eager = _eager(case.eager)
        for batch in BATCHES:
            # A GPU computes batches of one size, the one that it was opened with.
            runtime = open_runtime(path, "fp32", RuntimeSettings(provider), batch_size=batch)
            embedder = Embedder(runtime, batch_size=batch)
            part = slices if batch > 1 else slices[:32]
            samples = in_turns(
                {
                    "ours": lambda: embedder.submit(part).result(),  # noqa: B023
                    "bare": lambda: _batches(lambda some: session.run(None, {"slices": some}), part, batch),  # noqa: B023
                    "torch": lambda: _batches(eager, part, batch),  # noqa: B023
                },
                runs=5,
            )
            embedder.close()
            ours, bare, reference = (samples[name].median_s for name in ("ours", "bare", "torch"))
            yield Result(
                f"gpu_embedder_over_bare_ort[{case.label},batch {batch}]", bare / ours, "x", "higher",
                "bare ONNX Runtime on the GPU, the same file and batches",
                f"{len(part) / ours:.0f} slices a second; bare {len(part) / bare:.0f}, "
                f"eager PyTorch {len(part) / reference:.0f}; ours {samples['ours']}",
            )  # fmt: skip


def _eager(architecture: str) -> Callable[[np.ndarray], object]:
    import timm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = timm.create_model(architecture, pretrained=False, num_classes=0).eval().to(device)

    def forward(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(part).to(device)[:, None].expand(-1, 3, -1, -1)).cpu().numpy()

    return forward


def _batches(compute: Callable[[np.ndarray], object], slices: np.ndarray, size: int) -> None:
    for start in range(0, len(slices), size):
        compute(slices[start : start + size])
