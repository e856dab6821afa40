"""The Makefile's environment: an old Python, a broken `.venv`, an interrupted installation.

A script stands in for Python, so that nothing is downloaded: it reports a version, makes environments that consist of
itself, and writes down what it is asked to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TARGETS = ("demo", "test", "lint", "format", "proto", "docs", "bench", "evaluate", "wheel")

FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) exec {python} -c "import sys; sys.version = '{version}.4 (fake)'; sys.version_info = ({version_info}, 4)
import importlib.metadata; importlib.metadata.version = lambda name: open('{pip}' + name).close()
exec(sys.argv[1])" "$2" ;;
"-m venv")
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python
    [ -e {folder}/interrupt-venv ] && exit 1
    touch {pip}pip ;;
"-m pip") [ -e {folder}/interrupt-pip ] && exit 1 ;;
esac
echo "$*" >> {folder}/ran
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def fake_python(folder, version="3.12"):
    path = folder.parent / f"python{version}"
    path.write_text(
        FAKE_PYTHON.format(
            python=sys.executable,
            version=version,
            version_info=version.replace(".", ", "),
            folder=folder.parent,
            pip=folder.parent / "installed-",
        )
    )
    path.chmod(0o755)
    return path


def make(folder, target, python):
    ran = folder.parent / "ran"
    ran.unlink(missing_ok=True)
    # The tests themselves may run under make, which tells those below it.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    process = subprocess.run(
        ["make", target, f"PYTHON={python}"],
        cwd=folder,
        env=outside,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return process, ran.read_text().splitlines() if ran.exists() else []


INSTALL = "-m pip install --quiet --disable-pip-version-check --editable .[server]"


@pytest.mark.parametrize("target", TARGETS)
def test_an_old_python_is_refused_in_one_sentence_before_anything_is_made(checkout, target):
    old = fake_python(checkout, "3.10")
    before = sorted(checkout.iterdir())
    process, ran = make(checkout, target, old)
    assert process.returncode != 0
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert f"slicevote needs Python 3.11 or newer, and {old} is Python 3.10.4. " in line
    assert f"Choose another: make PYTHON=python3.12 {target}." in line
    assert (sorted(checkout.iterdir()), ran) == (before, [])


def test_a_python_that_is_not_there_is_refused_too(checkout):
    process, _ = make(checkout, "demo", "python9")
    assert "and python9 is not found. Choose another: make PYTHON=python3.12 demo." in process.stderr
    assert not (checkout / ".venv").exists()


def test_help_and_clean_need_no_python(checkout):
    for target in ("help", "clean"):
        assert make(checkout, target, "python9")[0].returncode == 0
    listed = make(checkout, "help", "python9")[0].stdout
    assert [line.split()[0] for line in listed.splitlines()] == [*TARGETS, "clean"] or set(TARGETS) < set(
        listed.split()
    )


def test_an_extra_is_installed_once_and_again_when_its_list_has_changed(checkout):
    python = fake_python(checkout)
    assert make(checkout, "demo", python)[1] == ["-m venv --clear .venv", INSTALL, "-m demo"]
    assert make(checkout, "demo", python)[1] == ["-m demo"]
    # What is there serves, whatever PYTHON would be for a new environment.
    assert make(checkout, "demo", fake_python(checkout, "3.10"))[1] == ["-m demo"]
    (checkout / "pyproject.toml").write_text("")
    assert make(checkout, "demo", python)[1] == [INSTALL, "-m demo"]


def test_an_environment_of_an_old_python_is_made_anew(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(fake_python(checkout, "3.10"), checkout / ".venv" / "bin" / "python")
    (checkout / ".venv" / ".server").touch()
    assert make(checkout, "demo", fake_python(checkout))[1] == ["-m venv --clear .venv", INSTALL, "-m demo"]


def test_an_environment_whose_python_is_gone_is_made_anew(checkout):
    python = fake_python(checkout)
    make(checkout, "demo", python)
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    assert make(checkout, "demo", python)[1] == ["-m venv --clear .venv", INSTALL, "-m demo"]


def test_an_interrupted_environment_is_made_anew(checkout):
    python = fake_python(checkout)
    (checkout.parent / "interrupt-venv").touch()
    assert make(checkout, "demo", python)[0].returncode != 0
    assert (checkout / ".venv").exists()
    (checkout.parent / "interrupt-venv").unlink()
    assert make(checkout, "demo", python)[1] == ["-m venv --clear .venv", INSTALL, "-m demo"]


def test_an_interrupted_installation_is_taken_up_again(checkout):
    python = fake_python(checkout)
    (checkout.parent / "interrupt-pip").touch()
    assert make(checkout, "demo", python)[0].returncode != 0
    (checkout.parent / "interrupt-pip").unlink()
    assert make(checkout, "demo", python)[1] == [INSTALL, "-m demo"]
