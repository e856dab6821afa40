"""What backbones run on: the providers, the check, and the same embeddings whatever the batch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from slicevote_client import Client
from slicevote_client.commands.printing import status_lines
from slicevote_server.backbone import check_golden, read_backbone
from slicevote_server.engine import EngineSettings
from slicevote_server.errors import StartupError
from slicevote_server.runtime import (
    PROVIDERS,
    Numerics,
    RuntimeSettings,
    onnx_session,
    open_runtime,
    openvino_model,
    providers,
)
from slicevote_server.runtime.interface import Runtime
from slicevote_server.runtime.onnx_session import OnnxSession
from slicevote_server.runtime.openvino_model import has_bf16, is_installed
from slicevote_server.runtime.parallel import ParallelBatches

from tests.support.phantoms import phantom_volume
from tests.support.servers import LocalServer

needs_openvino = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16 units, or OpenVINO is not installed")

CPU = Numerics("onnxruntime", "CPUExecutionProvider", "fp32")
OPENVINO = Numerics("openvino", "CPU", "fp32")
BF16 = Numerics("openvino", "CPU", "bf16")

EVERYWHERE = [
    "cpu",
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("openvino-bf16", marks=needs_bf16),
]


@pytest.mark.parametrize("provider", EVERYWHERE)
def test_batches_do_not_matter(tiny_backbone, provider):
    runtime = open_runtime(tiny_backbone, "fp32", RuntimeSettings(provider))
    assert isinstance(runtime, Runtime)
    slices = np.random.default_rng(0).random((32, 224, 224), dtype=np.float32)
    whole = runtime.embed(slices)
    for size in (1, 7):
        parts = np.concatenate([runtime.embed(slices[i : i + size]) for i in range(0, 32, size)])
        np.testing.assert_allclose(parts, whole, atol=1e-5 if provider != "openvino-bf16" else 2e-2)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("provider", EVERYWHERE)
def test_the_golden_embedding_comes_out(tiny_backbone, provider):
    check_golden(
        tiny_backbone, read_backbone(tiny_backbone), open_runtime(tiny_backbone, "fp32", RuntimeSettings(provider))
    )


START = """
import sys
from pathlib import Path
import numpy as np
from slicevote_server.runtime import RuntimeSettings, open_runtime
sys.setswitchinterval(1e-6)
runtime = open_runtime(Path(sys.argv[1]), "fp32", RuntimeSettings("openvino", 8, load_timeout_s=float(sys.argv[2])))
runtime.embed(np.zeros((8, 224, 224), np.float32))
"""


def start(backbone: Path, *, load_timeout_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process that loads a backbone in OpenVINO and embeds a batch with eight threads."""
    return subprocess.run(
        [sys.executable, "-c", START, str(backbone), str(load_timeout_s)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_openvino
def test_a_process_does_not_block_in_its_first_batch(tiny_backbone):
    # Without the call that is made alone first, one in four such processes blocked for ever.
    for _ in range(4):
        result = start(tiny_backbone, load_timeout_s=40)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("provider", EVERYWHERE)
def test_the_first_slice_is_computed_alone(tiny_backbone, monkeypatch, provider):
    threads = []

    class Watched(ParallelBatches):
        def __init__(self, compute, workers):
            def watched(slices):
                threads.append(threading.get_ident())
                return compute(slices)

            super().__init__(watched, workers)

    monkeypatch.setattr(onnx_session, "ParallelBatches", Watched)
    monkeypatch.setattr(openvino_model, "ParallelBatches", Watched)
    open_runtime(tiny_backbone, "fp32", RuntimeSettings(provider))
    assert threads == [threading.get_ident()]


def test_a_backbone_that_never_loads_ends_the_process(tmp_path, tiny_backbone):
    # An OpenVINO that blocks in native code and keeps the interpreter lock, as in the deadlock above.
    (tmp_path / "openvino.py").write_text("import ctypes\nCore = ctypes.PyDLL(None).pause\n")
    result = start(tiny_backbone, load_timeout_s=1, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "Timeout (0:00:01)!" in result.stderr
    assert "openvino_model.py" in result.stderr


def test_a_graph_that_cannot_be_computed_is_refused(tmp_path):
    huge = helper.make_graph(
        [
            helper.make_node("Shape", ["slices"], ["shape"]),
            helper.make_node("Mul", ["shape", "factor"], ["larger"]),
            helper.make_node("Expand", ["one", "larger"], ["embeddings"]),
        ],
        "huge",
        [helper.make_tensor_value_info("slices", TensorProto.FLOAT, ["N", 224, 224])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([1 << 30, 1 << 12, 1], np.int64), "factor"),
            numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "one"),
        ],
    )
    path = tmp_path / "huge.onnx"
    onnx.save(helper.make_model(huge, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(StartupError, match="cannot compute this graph on CPUExecutionProvider"):
        open_runtime(path, "fp32", RuntimeSettings("cpu"))


def test_bound_inputs_give_what_arrays_give(tiny_backbone):
    slices = np.random.default_rng(1).random((13, 224, 224), dtype=np.float32)
    bound, plain = (OnnxSession(tiny_backbone, "fp32", bind=bind) for bind in (True, False))
    for count in (1, 8, 13):
        np.testing.assert_allclose(bound.embed(slices[:count]), plain.embed(slices[:count]), atol=1e-6)


def test_a_device_computes_batches_of_one_size(tiny_backbone, monkeypatch):
    session = OnnxSession(tiny_backbone, "fp32", bind=True, batch_size=4)
    computed = []
    compute = session._run_bound_batch
    monkeypatch.setattr(session, "_run_bound_batch", lambda batch: computed.append(len(batch)) or compute(batch))
    for count in (1, 3, 4, 9):
        assert len(session.embed(np.ones((count, 224, 224), np.float32))) == count
    assert set(computed) == {4}


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_there_is_no_silent_cpu(tiny_backbone, provider):
    if PROVIDERS[provider].is_available():
        pytest.skip("this machine may have a GPU")
    with pytest.raises(StartupError, match=r"cannot be used on this machine.*slicevote\[gpu\]"):
        open_runtime(tiny_backbone, "fp32", RuntimeSettings(provider))


@needs_openvino
def test_an_archive_keeps_its_numerics_by_itself(tiny_backbone):
    for recorded in (CPU, OPENVINO):
        assert open_runtime(tiny_backbone, "fp32", RuntimeSettings(), recorded).numerics == recorded


class DisturbedProcessor:
    """A clock of processor time, and runtimes that take longer the more other processes disturb them."""

    def __init__(self, seed):
        self.now = 0.0
        self._disturbances = np.random.default_rng(seed)

    def runtime(self, numerics, seconds):
        return DisturbedRuntime(self, numerics, seconds)

    def work(self, seconds):
        # Now and then a run is left alone; contention costs the others up to twice their time.
        self.now += seconds * (1 + self._disturbances.choice([0.0, 0.02, 0.05, 0.3, 1.0]))


class DisturbedRuntime:
    def __init__(self, processor, numerics, seconds):
        self.numerics = numerics
        self._processor = processor
        self._seconds = seconds

    def embed(self, slices):
        self._processor.work(self._seconds)
        return np.zeros((len(slices), 64), np.float32)


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, BF16), (0.6, BF16), (0.8, CPU), (1.0, CPU), (1.1, CPU)])
def test_the_choice_of_bf16_is_the_same_at_every_start(tiny_backbone, monkeypatch, caplog, seconds, chosen):
    for seed in range(20):
        processor = DisturbedProcessor(seed)
        monkeypatch.setattr(providers.time, "process_time", lambda processor=processor: processor.now)
        rivals = {
            "cpu": providers.Provider(
                lambda *_, processor=processor: processor.runtime(CPU, 1.0), lambda _: CPU, lambda: True
            ),
            "openvino-bf16": providers.Provider(
                lambda *_, processor=processor: processor.runtime(BF16, seconds), lambda _: BF16, lambda: True
            ),
        }
        monkeypatch.setattr(providers, "PROVIDERS", {**PROVIDERS, **rivals})
        with caplog.at_level(logging.INFO):
            assert open_runtime(tiny_backbone, "fp32", RuntimeSettings()).numerics == chosen
    assert "bf16 is chosen from 1.4 on. Chosen: " in caplog.text


@needs_bf16
def test_a_backbone_that_gains_nothing_stays_in_fp32(tiny_backbone):
    # So small that OpenVINO's own work for a call outweighs everything.
    assert open_runtime(tiny_backbone, "fp32", RuntimeSettings()).numerics == CPU


def test_without_openvino_the_cpu_is_chosen(tiny_backbone, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_runtime(tiny_backbone, "fp32", RuntimeSettings()).numerics == CPU
    with pytest.raises(StartupError, match=r"pip install 'slicevote\[openvino\]'"):
        open_runtime(tiny_backbone, "fp32", RuntimeSettings("openvino"))


def test_other_numerics_than_the_archives_are_told_or_refused(tiny_backbone, caplog):
    with caplog.at_level(logging.WARNING):
        runtime = open_runtime(tiny_backbone, "fp32", RuntimeSettings("cpu"), BF16)
    assert runtime.numerics == CPU
    assert "was made in bf16 on CPU (openvino), this server embeds in fp32 on CPUExecutionProvider" in caplog.text
    with pytest.raises(StartupError, match="without --strict-numerics"):
        open_runtime(tiny_backbone, "fp32", RuntimeSettings("cpu", strict=True), BF16)


@needs_openvino
def test_the_status_tells_numerics_and_the_archives(tmp_path, tiny_backbone):
    data = tmp_path / "data"
    volume = phantom_volume(tmp_path, 1)
    made_with = EngineSettings(runtime=RuntimeSettings("openvino"))
    with LocalServer(data, [tiny_backbone], made_with) as server, Client(server.address) as client:
        client.ingest(volume)
    searched_with = EngineSettings(runtime=RuntimeSettings("cpu"))
    with LocalServer(data, [tiny_backbone], searched_with) as server, Client(server.address) as client:
        (archive,) = client.status()["archives"]
        assert archive["numerics"] == CPU.as_mapping()
        assert archive["archive_numerics"] == OPENVINO.as_mapping()
        assert client.search(volume, include_own=True).matches[0].votes == 12
    strict = EngineSettings(runtime=RuntimeSettings("cpu", strict=True))
    with pytest.raises(StartupError, match="strict"):
        LocalServer(data, [tiny_backbone], strict)


@needs_openvino
def test_an_archive_without_volumes_was_made_with_nothing(tmp_path, tiny_backbone):
    data = tmp_path / "data"
    for provider in ("openvino", "cpu"):
        settings = EngineSettings(runtime=RuntimeSettings(provider, strict=True))
        with LocalServer(data, [tiny_backbone], settings) as server, Client(server.address) as client:
            (archive,) = client.status()["archives"]
            assert archive["archive_numerics"] is None
            assert len(status_lines(client.status())) == 3


def test_both_builds_of_onnx_runtime_are_explained(monkeypatch, caplog):
    monkeypatch.setattr(onnx_session.metadata, "version", lambda name: "1.32.0")
    onnx_session.explain_mixed_builds()
    assert "they are the same module and overwrite each other" in caplog.text
