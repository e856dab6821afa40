"""Generate the Python stubs beside the .proto files.

`python proto/generate.py` writes them; `python proto/generate.py --check` writes nothing and exits 1 where a
committed stub is not what the .proto files give.
"""

from __future__ import annotations

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("slicevote") / "v1"
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def is_stub(path: Path) -> bool:
    """Return whether the file is generated."""
    return path.name.endswith(STUB_SUFFIXES)


def generate(target: Path) -> None:
    """Generate messages, services and their types into `target`.

    The plugins of mypy-protobuf must be beside the interpreter or on the PATH.
    """
    plugins = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={importlib.resources.files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy={shutil.which('protoc-gen-mypy', path=str(plugins)) or 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc="
        f"{shutil.which('protoc-gen-mypy_grpc', path=str(plugins)) or 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *(str(path) for path in sorted((ROOT / PACKAGE).glob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see above")
    for path in (target / PACKAGE).iterdir():
        # A message-only file still gets a service stub, which holds nothing.
        if path.name.endswith(("_pb2_grpc.py", "_pb2_grpc.pyi")):
            proto = (ROOT / PACKAGE / path.name.split("_pb2")[0]).with_suffix(".proto")
            if "\nservice " not in proto.read_text():
                path.unlink()


def stale_stubs() -> list[str]:
    """Return the names of stubs that are missing, superfluous or out of date."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name: path.read_bytes() for path in (Path(scratch) / PACKAGE).iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / PACKAGE).iterdir() if is_stub(path)}
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main() -> int:
    """Generate or check the stubs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a committed stub is stale")
    if parser.parse_args().check:
        stale = stale_stubs()
        if stale:
            sys.stderr.write(f"stale stubs, run 'make proto': {', '.join(stale)}\n")
        return 1 if stale else 0
    for path in (ROOT / PACKAGE).iterdir():
        if is_stub(path):
            path.unlink()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
