"""The contract: stubs up to date, style kept, nothing broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def check(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PATH": PATH}
    )


def test_the_contract_passes_its_checks():
    result = check("./proto/check.sh")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the contract that may be damaged."""
    import shutil

    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def test_stale_stubs_are_noticed(copy):
    proto = copy / "proto" / "slicevote" / "v1" / "volume.proto"
    proto.write_text(
        proto.read_text().replace("uint32 columns = 2;", "uint32 columns = 2;\n\n  // New.\n  bool new = 9;")
    )
    result = check(sys.executable, "proto/generate.py", "--check", cwd=copy)
    assert result.returncode == 1
    assert "volume_pb2.py" in result.stderr


def test_breaking_changes_are_noticed(copy):
    proto = copy / "proto" / "slicevote" / "v1" / "volume.proto"
    proto.write_text(proto.read_text().replace("uint32 columns = 2;", "uint64 columns = 2;"))
    result = check("buf", "breaking", "--against", "proto/v1.binpb", cwd=copy)
    assert result.returncode != 0
    assert "columns" in result.stdout


def test_fields_without_a_comment_are_noticed(copy):
    proto = copy / "proto" / "slicevote" / "v1" / "volume.proto"
    proto.write_text(proto.read_text().replace("  // Rows, 1 to 8192.\n", ""))
    assert check("buf", "lint", cwd=copy).returncode != 0
