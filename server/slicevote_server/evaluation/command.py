"""The command `slicevote-server evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from slicevote_server.archive.interface import Index
from slicevote_server.errors import StartupError
from slicevote_server.voting import DEFAULT_SIGMA

DEFAULT_BACKBONE = "efficientnet-lite0"


def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            exists=True,
            help="A folder with manifest.tsv (or that file), a folder of tasks of the Medical Segmentation Decathlon, "
            "or one task's folder. Given several times, they are one data set.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            file_okay=False,
            help="Folder of the results. Its folder 'work' keeps embeddings and hits: the same command run again goes "
            "on from there.",
            show_default=False,
        ),
    ],
    backbone: Annotated[
        list[Path] | None,
        typer.Option(
            "--backbone",
            help=f"ONNX file made by slicevote-export; may be given several times. Without one, {DEFAULT_BACKBONE} is "
            "exported into the work folder.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[str, typer.Option(help="Indexes to compare, separated by commas.")] = "hnsw,lsh,exact",
    leave_one_patient_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-patient-out",
            help="Every case is query and database; a query cannot find its own patient. The split does not matter.",
        ),
    ] = False,
    tasks: Annotated[
        str, typer.Option(help="Tasks of the Decathlon to take, by name or number, separated by commas.")
    ] = "",
    sigma: Annotated[
        float, typer.Option(min=0.001, help="Width of the Gaussian of 'weighted', as a fraction of the volume.")
    ] = DEFAULT_SIGMA,
    seed: Annotated[int, typer.Option(min=0, help="Of the random samplings.")] = 0,
    smoothing: Annotated[
        float,
        typer.Option(min=0.0, max=10.0, help="Smoothing after resampling, in pixels of 224. 0: none, as in the paper."),
    ] = 1.0,
    lsh_bits: Annotated[int, typer.Option(min=0, help="Length of an LSH code; 0: two bits a dimension.")] = 0,
    provider: Annotated[
        str,
        typer.Option(
            help="What computes: cpu, cuda, tensorrt, openvino, openvino-bf16, or auto. Several, with commas, are "
            "compared side by side. By default ONNX Runtime on the processor, so that the tables do not depend on the "
            "machine."
        ),
    ] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Slices embedded at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON document.")] = False,
) -> None:
    """Measures retrieval on labelled volumes: the paper's tables and figures, and what goes past them.

    Writes tables (TSV), figures (PNG and SVG) and report.md into the output folder; docs/evaluation.md explains them.

    What cannot be used is named, and the rest goes on; the exit code is then 1.

    Examples:
      slicevote-server evaluate --data Task04_Hippocampus --out results

      slicevote-server evaluate --data decathlon --tasks Liver,Spleen --backbone dino.onnx --out results

      slicevote-server evaluate --data scans --leave-one-patient-out --index hnsw,exact --out results
    """
    # What follows takes seconds to import; --help does not need it.
    from slicevote_server.archive.data_folder import make_writable_folder
    from slicevote_server.archive.lsh import LshSettings
    from slicevote_server.evaluation import run
    from slicevote_server.evaluation.backbone_run import EvaluationSettings
    from slicevote_server.evaluation.datasets import read_datasets
    from slicevote_server.evaluation.progress import Reporter
    from slicevote_server.intensity import IntensityPolicy
    from slicevote_server.runtime import PROVIDERS

    indexes = _indexes(index)
    providers = tuple(provider.split(","))
    unknown = [name for name in providers if name not in ("auto", *PROVIDERS)]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is none of auto, {', '.join(PROVIDERS)}", param_hint="--provider")
    wanted = [name for name in tasks.split(",") if name.strip()]
    try:
        dataset = read_datasets(data, leave_one_patient_out=leave_one_patient_out, tasks=wanted)
    except StartupError as error:
        raise typer.BadParameter(str(error), param_hint="--tasks" if wanted else "--data") from error
    reporter = Reporter(Console(stderr=True))
    make_writable_folder(out)
    settings = EvaluationSettings(
        indexes=indexes,
        sigma=sigma,
        seed=seed,
        policy=IntensityPolicy(smoothing_px=smoothing),
        providers=providers,
        batch_size=batch_size,
        lsh=LshSettings(bits=lsh_bits),
    )
    backbones = backbone or [export_default(out / run.WORK, reporter.say)]
    evaluation = run.evaluate(dataset, backbones, out, settings, reporter)
    if as_json:
        typer.echo(json.dumps(_document(evaluation), indent=2, ensure_ascii=False))
    else:
        reporter.say(f"written to {out}: {', '.join(path.name for path in evaluation.files)}")
    if evaluation.problems:
        reporter.say(f"error: not everything could be used; problems named in the report: {len(evaluation.problems)}")
        raise typer.Exit(1)


def export_default(work: Path, say: Any) -> Path:
    """Exports the default backbone into the work folder, unless it is there.

    Raises:
        StartupError: It cannot be exported here.
    """
    path = work / f"{DEFAULT_BACKBONE}.onnx"
    if path.is_file():
        return path
    work.mkdir(parents=True, exist_ok=True)
    exporter = Path(sys.executable).with_name("slicevote-export")
    say(f"no --backbone is given: exporting {DEFAULT_BACKBONE} to {path}")
    scratch = path.with_name(f"{path.stem}.part.onnx")
    hint = "give --backbone a file, or pip install 'slicevote[export]'"
    if not exporter.exists():
        raise StartupError(f"slicevote-export is not installed beside this command; {hint}")
    command = [str(exporter), DEFAULT_BACKBONE, "--out", str(scratch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own exporter
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise StartupError(f"slicevote-export could not export {DEFAULT_BACKBONE} ({reason}); {hint}")
    scratch.replace(path)
    return path


def _indexes(text: str) -> tuple[Index, ...]:
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    known = [entry.value for entry in Index]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"'{name}' is none of {', '.join(known)}", param_hint="--index")
    if not names:
        raise typer.BadParameter("name at least one index", param_hint="--index")
    return tuple(Index(name) for name in names)


def _document(evaluation: Any) -> dict[str, Any]:
    """Gives a summary as plain data."""
    from slicevote_server.evaluation.metrics import MEAN, OVERALL
    from slicevote_server.evaluation.tables import bare_ratio

    results = evaluation.results
    return {
        "files": [str(path) for path in evaluation.files],
        "problems": [{"path": str(problem.path), "reason": problem.reason} for problem in evaluation.problems],
        "cases": {
            "database": sum(source.is_database for source in results.sources),
            "query": sum(source.is_query for source in results.sources),
        },
        "unfindable": {level: list(results.classes(level).unfindable) for level in results.dataset.levels},
        "recall": [
            {
                "level": row.level,
                "over": "classes" if row.label == MEAN else "cases",
                "index": row.index,
                "backbone": row.backbone,
                **row.values,
            }
            for row in results.recall
            if row.label in (MEAN, OVERALL)
        ],
        "times": [
            {
                "backbone": result.name,
                "slices_embedded": result.times.embedded_slices,
                "slices_reused": result.times.reused_slices,
                "seconds": result.wall_s,
                "times_bare_embedding": bare_ratio(result),
            }
            for result in results.backbones
        ],
    }
