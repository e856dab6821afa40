"""The command `slicevote-evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from slicevote_server import __version__
from slicevote_server.archive.interface import Index
from slicevote_server.errors import EngineError, StartupError
from slicevote_server.voting import DEFAULT_SIGMA

if TYPE_CHECKING:
    from slicevote_evaluation.run import Evaluation

DEFAULT_BACKBONE = "efficientnet-lite0"

_METHOD, _COMPUTING = "Method", "Computing"

app = typer.Typer(
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples:\n\n"
    "slicevote-evaluate --data Task04_Hippocampus --out results\n\n"
    "slicevote-evaluate --data decathlon --tasks Liver,Spleen --backbone dino.onnx --out results\n\n"
    "slicevote-evaluate --data scans --leave-one-patient-out --index hnsw,exact --out results"
)
def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            exists=True,
            help="Folder with manifest.tsv (or that file), folder of Medical Segmentation Decathlon tasks, or folder "
            "of one task. Repeat it to combine data sets.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            file_okay=False,
            help="Folder for the results. Its subfolder 'work' keeps embeddings, so that a repeated or interrupted "
            "run continues from there.",
            show_default=False,
        ),
    ],
    backbone: Annotated[
        list[Path] | None,
        typer.Option(
            "--backbone",
            help=f"ONNX file made by slicevote-export. Repeat it to compare backbones. By default, {DEFAULT_BACKBONE} "
            "is exported into the work folder.",
            show_default=False,
        ),
    ] = None,
    leave_one_patient_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-patient-out",
            help="Use every case as query and as database, and exclude the query's own patient. The split is ignored.",
        ),
    ] = False,
    tasks: Annotated[
        str, typer.Option(help="Decathlon tasks to use, by name or number, separated by commas.", show_default="all")
    ] = "",
    index: Annotated[
        str, typer.Option(help="Indexes to compare, separated by commas.", rich_help_panel=_METHOD)
    ] = "hnsw,lsh,exact",
    sigma: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Width of the Gaussian aggregation (column 'weighted'), as a fraction of the volume.",
            show_default="1/6",
            rich_help_panel=_METHOD,
        ),
    ] = DEFAULT_SIGMA,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random samplings.", rich_help_panel=_METHOD)] = 0,
    smoothing: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=10.0,
            help="Smoothing after resampling, in pixels of 224. 0 for none, as in the paper.",
            rich_help_panel=_METHOD,
        ),
    ] = 1.0,
    lsh_bits: Annotated[
        int, typer.Option(min=0, help="Bits of an LSH code. 0 for two per dimension.", rich_help_panel=_METHOD)
    ] = 0,
    provider: Annotated[
        str,
        typer.Option(
            help="What computes embeddings: cpu, cuda, tensorrt, openvino, openvino-bf16 or auto. Separate several by "
            "commas to compare them. With cpu, results do not depend on the machine.",
            rich_help_panel=_COMPUTING,
        ),
    ] = "cpu",
    batch_size: Annotated[
        int, typer.Option(min=1, max=256, help="Slices embedded at once.", rich_help_panel=_COMPUTING)
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON document.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Measure how well labelled volumes are found: the paper's tables and figures, for your data and backbones.

    Writes tables (TSV), figures (PNG and SVG) and report.md into the output folder; see
    docs/how-to/reproduce-the-paper.md.

    The exit code is 1 if some data could not be used. The rest is evaluated, and the report names what was not.
    """
    # Imports that take long come when they are needed; --help and misuse need none of them.
    from slicevote_server.runtime import PROVIDERS

    from slicevote_evaluation.datasets import read_datasets
    from slicevote_evaluation.progress import Reporter

    indexes = tuple(Index(name) for name in _choices(index.lower(), [entry.value for entry in Index], "--index"))
    providers = _choices(provider, ["auto", *PROVIDERS], "--provider")
    wanted = [name for name in tasks.split(",") if name.strip()]
    try:
        dataset = read_datasets(data, leave_one_patient_out=leave_one_patient_out, tasks=wanted)
    except StartupError as error:
        raise typer.BadParameter(str(error), param_hint="--tasks" if wanted else "--data") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise typer.BadParameter(f"'{out}' cannot be written ({error.strerror})", param_hint="--out") from error
    from slicevote_server.archive.lsh import LshSettings
    from slicevote_server.engine import EngineSettings
    from slicevote_server.intensity import IntensityPolicy

    from slicevote_evaluation import run

    reporter = Reporter(Console(stderr=True))
    settings = run.EvaluationSettings(
        indexes=indexes,
        sigma=sigma,
        seed=seed,
        providers=providers,
        engine=EngineSettings(
            policy=IntensityPolicy(smoothing_px=smoothing),
            thumbnails=False,
            batch_size=batch_size,
            lsh=LshSettings(bits=lsh_bits),
        ),
    )
    backbones = backbone or [export_default(out / run.WORK, reporter.say)]
    evaluation = run.evaluate(dataset, backbones, out, settings, reporter)
    if as_json:
        print(json.dumps(_summary(evaluation), indent=2, ensure_ascii=False))
    else:
        reporter.say(f"written to {out}: {', '.join(path.name for path in evaluation.files)}")
    if evaluation.problems:
        reporter.say(f"error: not everything could be used; problems named in the report: {len(evaluation.problems)}")
        raise typer.Exit(1)


def export_default(work: Path, say: Callable[[str], None]) -> Path:
    """Export the default backbone into the work folder, unless it is there, and return its file.

    Raises:
        StartupError: It cannot be exported here.
    """
    path = work / f"{DEFAULT_BACKBONE}.onnx"
    if path.is_file():
        return path
    work.mkdir(parents=True, exist_ok=True)
    exporter = Path(sys.executable).with_name("slicevote-export")
    say(f"no --backbone given: exporting {DEFAULT_BACKBONE} to {path}")
    scratch = path.with_name(f"{path.stem}.part.onnx")
    hint = "name a file with --backbone, or run pip install 'slicevote[server]'"
    if not exporter.exists():
        raise StartupError(f"slicevote-export is not installed beside this command; {hint}")
    command = [str(exporter), DEFAULT_BACKBONE, "--out", str(scratch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own exporter
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StartupError(f"slicevote-export could not export {DEFAULT_BACKBONE} ({reason}); {hint}")
    scratch.replace(path)
    return path


def _choices(text: str, known: list[str], option: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"'{name}' is not one of {', '.join(known)}", param_hint=option)
    if not names:
        raise typer.BadParameter(f"name at least one of {', '.join(known)}", param_hint=option)
    return names


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the summary of an evaluation as plain data."""
    from slicevote_evaluation.tables import MEAN, OVERALL

    results = evaluation.results
    recall = results.table("recall").reset_index()
    recall = recall[recall["class"].isin([MEAN, OVERALL])]
    recall.insert(1, "over", recall.pop("class").map({MEAN: "classes", OVERALL: "cases"}))
    classes = {level: results.classes(level) for level in results.dataset.levels}
    return {
        "files": [str(path) for path in evaluation.files],
        "problems": [{"path": str(problem.path), "reason": problem.reason} for problem in evaluation.problems],
        "cases": {
            "database": int(results.cases["is_database"].sum()),
            "query": int(results.cases["is_query"].sum()),
        },
        "unfindable": {
            level: list(table.index[(table["queries"] > 0) & ~table["findable"]]) for level, table in classes.items()
        },
        "recall": json.loads(recall.to_json(orient="records", double_precision=12)),
        "slices": [
            {"backbone": entry.name, "embedded": entry.embedded.embedded_count, "reused": entry.embedded.reused_count}
            for entry in results.backbones
        ],
    }


def main() -> None:
    """Run the command: exit code 0 on success, 2 on misuse, 1 on failure."""
    try:
        app()
    except ModuleNotFoundError as error:
        print(
            f"error: the package {error.name} is not installed; pip install 'slicevote[server,evaluate]'",
            file=sys.stderr,
        )
        sys.exit(1)
    except (StartupError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
