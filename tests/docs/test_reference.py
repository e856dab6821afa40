"""The hand-written reference agrees with the code: errors, metrics, options, make targets, extras."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import typer
from google.rpc import code_pb2
from slicevote import contract
from slicevote_server import errors
from slicevote_server.service.errors import CODES
from slicevote_server.service.server import ServerSettings

from tests.docs.blocks import PAGES, ROOT
from tests.support.servers import LocalServer

SERVER = ROOT / "server" / "slicevote_server"
REFERENCE = ROOT / "docs" / "reference"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def code_of(kind: str) -> str:
    """The gRPC code that errors of a class are answered with; INTERNAL for what is no error of the engine's."""
    found = getattr(errors, kind, None)
    bases = found.__mro__ if isinstance(found, type) else ()
    return next((code_pb2.Code.Name(CODES[base]) for base in bases if base in CODES), "INTERNAL")


def reasons_in_code() -> dict[str, set[str]]:
    """Every constant that the server's code gives as a reason, with the codes that it is answered with."""
    found: dict[str, set[str]] = {}
    for path in SERVER.rglob("*.py"):
        tree = ast.parse(path.read_text())
        classes = {child: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in ast.walk(node)}
        for node in ast.walk(tree):
            given: list[tuple[str, ast.expr | None]] = []
            name = classes[node].name if node in classes else ""
            if isinstance(node, ast.Call):
                given = [(str(keyword.arg), keyword.value) for keyword in node.keywords]
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                name = name if called == "__init__" else called
            elif isinstance(node, ast.FunctionDef):
                defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                given = [(argument.arg, default) for argument, default in defaults]
            for argument, value in given:
                # Reasons that clients act on are constants of the contract.
                shared = getattr(contract, value.id, None) if isinstance(value, ast.Name) else None
                reason = value.value if isinstance(value, ast.Constant) else shared
                if argument == "reason" and reason is not None:
                    found.setdefault(reason, set()).add(code_of(name))
    return found


def test_every_reason_stands_in_the_reference_with_its_code():
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \|", (REFERENCE / "errors.md").read_text(), re.MULTILINE)
    assert {reason: {code} for reason, code in rows} == reasons_in_code()


def test_every_metric_stands_in_the_reference(tmp_path, tiny_backbone):
    listening = ServerSettings(address="127.0.0.1:0", grace_s=1, metrics_address="127.0.0.1:0")
    with LocalServer(tmp_path / "data", [tiny_backbone], listening=listening) as server:
        text = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    exposed = set(re.findall(r"^# TYPE (slicevote_\w+)", text, re.MULTILINE))
    # Counters and info metrics carry a suffix in their samples, which is how they are queried.
    samples = set(re.findall(r"^(slicevote_\w+?)(?:_bucket|_sum|_count)?(?:\{| )", text, re.MULTILINE))
    documented = set(re.findall(r"`(slicevote_\w+)`", (REFERENCE / "metrics.md").read_text()))
    assert {name for name in exposed | samples if not name.endswith("_created")} >= documented
    assert {name for name in samples if not name.endswith("_created")} <= documented


def known_options() -> set[str]:
    options = set()

    def collect(command) -> None:
        for parameter in command.params:
            options.update((*parameter.opts, *parameter.secondary_opts))
        for sub in getattr(command, "commands", {}).values():
            collect(sub)

    for entry in PROJECT["scripts"].values():
        module = importlib.import_module(entry.partition(":")[0])
        collect(typer.main.get_command(module.build_app() if hasattr(module, "build_app") else module.app))
    return options | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_there_is(page: Path):
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    options = {option for code in re.findall(r"`([^`\n]+)`", prose) for option in re.findall(r"(?<!\S)--[a-z-]+", code)}
    assert options <= known_options()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"\bmake ([a-z]+)\b(?=[`\s].*\n?)", "\n".join(re.findall(r"`(make [^`]+)`", text)))) <= targets
    )
    extras = {name for found in re.findall(r"\.\[([a-z,]+)\]", text) for name in found.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_map_of_changes_names_files_that_there_are():
    page = ROOT / "docs" / "explanation" / "where-things-go.md"
    named = re.findall(r"`((?:server|client|volumes|exporters|evaluation|proto|docs)/[\w./-]+)`", page.read_text())
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    words = [
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "cache",
        "docs",
        tmp_path / "site",
    ]
    built = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    loaded = [
        (page.name, address)
        for page in (tmp_path / "site").rglob("*.html")
        for address in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
    ]
    assert loaded == []


def test_an_undocumented_public_name_is_found(monkeypatch):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    from generated_reference import PUBLIC_PACKAGES, undocumented_names

    assert [name for package in PUBLIC_PACKAGES for name in undocumented_names(package)] == []
    monkeypatch.setattr("slicevote_client.Client.close.__doc__", None)
    assert undocumented_names("slicevote_client") == ["slicevote_client.Client.close"]


def test_the_code_names_pages_that_there_are():
    sources = [path for path in ROOT.glob("[a-z]*/**/*.py") if not path.is_relative_to(ROOT / "tests")]
    named = {page for path in sources for page in re.findall(r"docs/[\w/-]+\.md", path.read_text())}
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []
