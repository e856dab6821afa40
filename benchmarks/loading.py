"""Load one backbone in a process that does nothing else, and print what that took as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from slicevote_server.backbone import read_backbone
from slicevote_server.runtime import RuntimeSettings, open_runtime


def resident_mebibytes() -> float:
    """Read the memory that this process holds."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def main(path: Path) -> None:
    """Loads, embeds a batch of 8, and prints seconds and growth."""
    before = resident_mebibytes()
    started = time.perf_counter()
    backbone = read_backbone(path)
    runtime = open_runtime(path, backbone.precision, RuntimeSettings("cpu"))
    seconds = time.perf_counter() - started
    runtime.embed(np.zeros((8, 224, 224), np.float32))
    print(json.dumps({"seconds": seconds, "mebibytes": resident_mebibytes() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
