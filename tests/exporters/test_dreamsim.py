"""DreamSim against the dreamsim package on the same weights, and its archive in good and bad shape."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import slicevote_exporters.families.dreamsim as families_dreamsim
import torch
from slicevote_exporters.errors import HubUnreachable, WeightsError
from slicevote_exporters.export import _load
from slicevote_exporters.parity import parity_slices
from slicevote_exporters.registry import DINOV1_VITB16, find
from slicevote_exporters.torch_graph import ServingGraph, embed_in_torch

from tests.exporters.test_exports import require_agreement

SINGLE = "dreamsim-dino-vitb16"


def reference(monkeypatch, folder, kind):
    """The package's model on those files, and its preparation of a picture.

    The package fetches DINO's code and weights from a hub, whatever its folder holds; its own copy of that code and
    the folder's weights stand in for the hub.
    """
    dreamsim = pytest.importorskip("dreamsim", reason="the dreamsim package is the reference; pip install dreamsim")
    from dreamsim.feature_extraction.vision_transformer import vit_base

    def from_folder(repository, model):
        assert (repository, model) == ("facebookresearch/dino:main", "dino_vitb16")
        teacher = torch.load(folder / "dino_vitb16_pretrain.pth", weights_only=True)["teacher"]
        network = vit_base()
        network.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in teacher.items()})
        return network

    monkeypatch.setattr(torch.hub, "load", from_folder)
    monkeypatch.setattr(torch.hub, "set_dir", lambda folder: None)
    return dreamsim.dreamsim(pretrained=True, device="cpu", cache_dir=str(folder), dreamsim_type=kind)


@pytest.mark.parametrize(
    ("name", "kind"), [(SINGLE, "dino_vitb16"), pytest.param("dreamsim-ensemble", "ensemble", marks=pytest.mark.slow)]
)
def test_computes_what_the_dreamsim_package_embeds(name, kind, cases, exported, monkeypatch, tmp_path):
    from PIL import Image

    shutil.unpack_archive(cases(name).weights, tmp_path)
    model, prepare = reference(monkeypatch, tmp_path, kind)
    pictures = (parity_slices()[:3] * 255).round().astype(np.uint8)
    with torch.inference_mode():
        expected = model.embed(torch.cat([prepare(Image.fromarray(picture)) for picture in pictures])).numpy()
    session = onnxruntime.InferenceSession(exported(name).path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"slices": pictures.astype(np.float32) / 255})[0]
    require_agreement(expected, found)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)


@pytest.fixture(scope="module")
def folder(cases, tmp_path_factory):
    unpacked = tmp_path_factory.mktemp("models")
    shutil.unpack_archive(cases(SINGLE).weights, unpacked)
    return unpacked


def test_a_folder_is_as_good_as_the_archive_and_dino_s_release_as_its_teacher(cases, folder, tmp_path):
    slices = parity_slices()[:1]
    expected = embed_in_torch(ServingGraph(_load(find(SINGLE), cases(SINGLE).weights)), slices)
    np.testing.assert_array_equal(embed_in_torch(ServingGraph(_load(find(SINGLE), folder)), slices), expected)
    teacher = torch.load(folder / "dino_vitb16_pretrain.pth", weights_only=True)["teacher"]
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {name.removeprefix("backbone."): tensor for name, tensor in teacher.items()},
        tmp_path / "checkpoints" / "dino_vitbase16_pretrain.pth",
    )
    shutil.copytree(folder / "dino_vitb16_single_lora", tmp_path / "dino_vitb16_single_lora")
    np.testing.assert_array_equal(embed_in_torch(ServingGraph(_load(find(SINGLE), tmp_path)), slices), expected)


def damaged(folder, tmp_path):
    """A copy whose large file is the original's, by a link."""
    copy = tmp_path / "models"
    shutil.copytree(folder / "dino_vitb16_single_lora", copy / "dino_vitb16_single_lora")
    (copy / "dino_vitb16_pretrain.pth").symlink_to(folder / "dino_vitb16_pretrain.pth")
    return copy, copy / "dino_vitb16_single_lora"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "all"}, "uses bias"),
        ({"r": 0}, "cannot be understood"),
        ({"lora_alpha": None}, "cannot be understood"),
    ],
)
def test_an_adapter_that_is_not_understood_is_refused(folder, tmp_path, change, message):
    copy, adapter = damaged(folder, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=message):
        _load(find(SINGLE), copy)


def test_an_adapter_with_wrong_tensors_is_refused(folder, tmp_path):
    import safetensors.torch

    copy, adapter = damaged(folder, tmp_path)
    whole = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    some = next(iter(whole))
    at = "base_model.model.extractor_list.0.model.blocks"
    cases = {
        "one of the two factors": {name: tensor for name, tensor in whole.items() if name != some},
        "no LoRA weight": whole | {"base_model.model.mlp.weight": torch.ones(2)},
        "which does not exist": {f"{at}.99.attn.qkv.lora_{letter}.weight": torch.ones(16, 16) for letter in "AB"},
        "do not fit that layer": whole | {f"{at}.0.attn.qkv.lora_A.weight": torch.ones(16, 384)},
        "adapts the branches [0, 1]": whole
        | {name.replace("extractor_list.0", "extractor_list.1"): tensor.clone() for name, tensor in whole.items()},
    }
    for message, tensors in cases.items():
        safetensors.torch.save_file(tensors, adapter / "adapter_model.safetensors")
        with pytest.raises(WeightsError, match=re.escape(message)):
            _load(find(SINGLE), copy)


def test_a_checkpoint_that_is_not_complete_says_what_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    copy, adapter = damaged(folder, tmp_path)
    with pytest.raises(WeightsError, match=r"no clip_vitb16_pretrain\.pth\.tar"):
        _load(find("dreamsim-ensemble"), copy)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no dino_vitb16_single_lora/adapter_model"):
        _load(find(SINGLE), copy)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no dino_vitb16_single_lora/adapter_config\.json"):
        _load(find(SINGLE), copy)


def test_without_dino_s_teacher_its_release_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    source = replace(DINOV1_VITB16.source, url="http://127.0.0.1:9/dino_vitbase16_pretrain.pth")
    monkeypatch.setattr(families_dreamsim, "DINOV1_VITB16", replace(DINOV1_VITB16, source=source))
    torch.save({"student": {"module.head.mlp.0.weight": torch.ones(2)}}, tmp_path / "dino_vitb16_pretrain.pth")
    with pytest.raises(HubUnreachable, match=r"dino_vitbase16_pretrain\.pth beside the unpacked files"):
        _load(find(SINGLE), tmp_path)


def test_an_archive_that_is_cut_short_says_so(cases, tmp_path):
    path = tmp_path / "dreamsim.zip"
    with cases(SINGLE).weights.open("rb") as whole:
        path.write_bytes(whole.read(100_000))
    with pytest.raises(WeightsError, match="whole zip file"):
        _load(find(SINGLE), path)
