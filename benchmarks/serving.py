"""Run a server as users do, as a process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = Path(sys.executable).parent


def export(name: str, folder: Path, *options: str) -> Path:
    """Export a backbone, once, and return the file."""
    path = folder / f"{name.replace(':', '-')}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(COMMANDS / "slicevote-export"), name, "--out", str(path), *options], check=True)
    return path


@contextmanager
def serving(backbone: Path, data: Path, *options: str) -> Iterator[str]:
    """Run `slicevote-server serve`, and yield its address."""
    data.mkdir(parents=True, exist_ok=True)
    log = data / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [
                str(COMMANDS / "slicevote-server"),
                *("serve", "--data", str(data), "--backbone", str(backbone), "--listen", "127.0.0.1:0", *options),
            ],
            stderr=stream,
        )
    try:
        while "listening on " not in log.read_text():
            if server.poll() is not None:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield log.read_text().split("listening on ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()
