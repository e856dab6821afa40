"""Fixtures that every part of the tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from slicevote_client import Client

from tests.support.backbones import write_tiny_backbone
from tests.support.servers import LocalServer

# The same examples in every run, so that a run says something about the change and not about luck. `explore` looks for
# new ones; timing is for benchmarks in either.
_unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", derandomize=True, **_unhurried)
settings.register_profile("explore", max_examples=3000, print_blob=True, **_unhurried)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and those that share exported backbones: exporting takes long."""
    for item in items:
        folder = item.path.parent
        group = folder if folder.name == "exporters" else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes beside the checkout."""
    if not (SHARED_DATA / "manifest.tsv").is_file():
        pytest.skip("needs the folder of real volumes beside the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of a few kilobytes."""
    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / "tiny.onnx")


@pytest.fixture
def server(tmp_path: Path, tiny_backbone: Path) -> Iterator[LocalServer]:
    """A real server on a loopback port, with an empty archive."""
    with LocalServer(tmp_path / "data", [tiny_backbone]) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    """A real client of that server."""
    with Client(server.address, secret=b"tests", timeout_s=60) as connected:
        yield connected
