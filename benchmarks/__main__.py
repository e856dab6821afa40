"""Run the benchmarks, print the results, and write benchmarks/results.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import archive, backbones, bulk, evaluation, gpu, search
from benchmarks.measure import Result
from benchmarks.serving import export

RESULTS = Path(__file__).parent / "results.json"
BACKBONES = Path("out") / "benchmarks"

CASES: dict[str, Callable[[], Iterator[Result]]] = {
    "search": lambda: search.measure(export("efficientnet-lite0", BACKBONES)),
    "bulk": lambda: bulk.measure(export("efficientnet-lite0", BACKBONES)),
    "archive": archive.measure,
    "evaluation": lambda: evaluation.measure(export("efficientnet-lite0", BACKBONES)),
    "backbones": lambda: backbones.measure(BACKBONES),
    # Nothing where there is no GPU.
    "gpu": lambda: gpu.measure(BACKBONES),
}


def main() -> None:
    """Run all cases, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", choices=[[], *CASES], help="which cases; all by default")
    wanted = parser.parse_args().case or list(CASES)
    results: list[Result] = []
    for name in wanted:
        for result in CASES[name]():
            print(f"{result.name} = {result.value:.3f} {result.unit} ({result.better} is better; {result.reference})")
            print(f"    {result.note}", flush=True)
            results.append(result)
    if len(wanted) == len(CASES):
        RESULTS.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
