"""Weights from the internet, with a server on the loopback interface in the place of the hub."""

from __future__ import annotations

import functools
import http.server
import threading
from dataclasses import replace

import pytest
import torch
from slicevote_exporters import export
from slicevote_exporters.errors import ExportError, HubUnreachable, UnknownBackbone, WeightsError
from slicevote_exporters.export import _load, resolve
from slicevote_exporters.families import timm_models
from slicevote_exporters.registry import find

from tests.exporters import checkpoints as layouts


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that is served, its address, and an empty cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    served = tmp_path / "served"
    served.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def at(address):
    spec = find("dinov1-vits16")
    return replace(spec, source=replace(spec.source, url=f"{address}/{spec.source.file_name}"))


def test_weights_are_fetched_once(hub, tmp_path):
    served, address = hub
    spec = at(address)
    torch.save(layouts.dinov1(), served / spec.source.file_name)
    assert _load(spec, None).weights_source == spec.source.url
    (served / spec.source.file_name).unlink()
    assert _load(spec, None).parameter_count == spec.parameter_count
    assert [path.name for path in (tmp_path / "cache" / "checkpoints").iterdir()] == [spec.source.file_name]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_a_hub_that_cannot_be_reached_names_the_file_and_the_option(hub, address):
    with pytest.raises(HubUnreachable) as caught:
        _load(at(address), None)
    assert "--weights dino_deitsmall16_pretrain.pth" in str(caught.value)
    assert address in str(caught.value)


def test_a_file_that_the_hub_has_no_longer_says_so(hub):
    with pytest.raises(HubUnreachable, match=r"[Nn]ot [Ff]ound"):
        _load(at(hub[1]), None)


def test_a_page_in_place_of_the_file_is_not_kept(hub, tmp_path):
    served, address = hub
    spec = at(address)
    (served / spec.source.file_name).write_text("<html>Please accept the licence</html>")
    with pytest.raises(WeightsError, match="web page"):
        _load(spec, None)
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


def test_timm_without_its_hub_names_the_file_and_the_option(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnreachable, match=r"--weights model\.safetensors"):
        timm_models.load(resolve("timm:resnet18.a1_in1k"), None)


@pytest.mark.parametrize("name", ["timm:resnet17", "timm:resnet18.no_such_tag", "timm:"])
def test_a_model_that_timm_has_not_is_unknown(name):
    with pytest.raises(UnknownBackbone, match="has no model"):
        resolve(name)


def test_a_timm_model_without_weights_asks_for_a_file():
    with pytest.raises(WeightsError, match=r"no pretrained weights.*--weights"):
        timm_models.load(resolve("timm:vit_base_patch16_18x2_224"), None)


def test_a_network_that_one_file_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 1_000_000)
    with pytest.raises(ExportError, match=r"3371008 weights; one ONNX file holds at most 2 GiB"):
        export.export_backbone(export.ExportRequest(find("efficientnet-lite0"), tmp_path / "e.onnx"))


def test_timm_models_at_another_input_size_are_built_for_ours():
    spec = resolve("timm:vit_small_patch14_dinov2.lvd142m")
    network = timm_models._build(spec, pretrained=False)
    assert network.pos_embed.shape[1] == 257
    assert timm_models._build(resolve("timm:resnet10t.c3_in1k"), pretrained=False) is not None
