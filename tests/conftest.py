"""Fixtures that every part of the tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slicevote_client import Client

from tests.support.backbones import write_tiny_backbone
from tests.support.servers import LocalServer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
