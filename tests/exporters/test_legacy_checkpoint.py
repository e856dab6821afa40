"""Checkpoints in the format of PyTorch before 1.6, read without PyTorch."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from slicevote_exporters.errors import WeightsError
from slicevote_exporters.legacy_checkpoint import read_legacy_checkpoint


def save(path, document):
    torch.save(document, path, _use_new_zipfile_serialization=False)
    return path


def test_tensors_are_read_as_pytorch_reads_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, generator=generator)
    written = OrderedDict(
        plain=torch.randn(2, 3, 3, 3, generator=generator),
        transposed=torch.randn(3, 4, 2, generator=generator).permute(2, 0, 1),
        part=whole[2:4, 1:],
        same_storage=whole[0],
        counter=torch.tensor(17),
        counters=torch.arange(4),
    )
    found = read_legacy_checkpoint(save(tmp_path / "w.pth", written))
    assert list(found) == list(written)
    for name, tensor in written.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[name], tensor.numpy())


class Harmful:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def test_nothing_in_a_file_runs(tmp_path, capsys):
    (tmp_path / "bystander").touch()
    for harmful in (Harmful(print, "has run"), Harmful(os.remove, str(tmp_path / "bystander")), np.dtype("f4")):
        for place in (OrderedDict(weight=harmful), harmful):
            path = save(tmp_path / "w.pth", place)
            with pytest.raises(WeightsError, match="is not allowed"):
                read_legacy_checkpoint(path)
    assert (tmp_path / "bystander").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("document", [[1], {"a": 1}, OrderedDict(a=1), OrderedDict(a="x"), None, 7])
def test_what_is_no_state_dict_of_tensors_is_refused(tmp_path, document):
    with pytest.raises(WeightsError, match=r"holds no state dict|something other than tensors"):
        read_legacy_checkpoint(save(tmp_path / "w.pth", document))


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(OrderedDict(a=torch.ones(2)), path)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        read_legacy_checkpoint(path)
    path.write_bytes(pickle.dumps(5) + pickle.dumps(6))
    with pytest.raises(WeightsError, match="not a checkpoint in the format"):
        read_legacy_checkpoint(path)
    with pytest.raises(WeightsError, match="No such file"):
        read_legacy_checkpoint(tmp_path / "none.pth")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    path = save(tmp_path / "w.pth", OrderedDict(a=torch.ones(7, 9)))
    content = path.read_bytes()
    # The pickle holds the shape as K\x07K\x09 and the strides as K\x09K\x01.
    for found, damaged in ((b"K\x07K\x09\x86", b"K\x08K\x09\x86"), (b"K\x09K\x01\x86", b"K\x0bK\x01\x86")):
        assert content.count(found) == 1
        path.write_bytes(content.replace(found, damaged))
        with pytest.raises(WeightsError, match="reaches beyond its storage"):
            read_legacy_checkpoint(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = save(tmp_path / "w.pth", OrderedDict(a=torch.ones(3), b=torch.arange(2)))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError):
            read_legacy_checkpoint(path)


def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path):
    path = save(tmp_path / "w.pth", OrderedDict(a=torch.ones(3), b=torch.arange(2)))
    content = bytearray(path.read_bytes())
    for position in range(len(content)):
        for change in (0x01, 0x80):
            damaged = content.copy()
            damaged[position] ^= change
            path.write_bytes(damaged)
            try:
                read_legacy_checkpoint(path)
            except WeightsError:
                continue
