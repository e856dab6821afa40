"""The command `slicevote-export`: list the backbones, export one, show what a file says about itself."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from slicevote_exporters import manifest as manifests
from slicevote_exporters.errors import ExportError, UnknownBackbone
from slicevote_exporters.registry import BACKBONES, BackboneSpec

if TYPE_CHECKING:
    from slicevote_exporters.export import ExportReport

MEBIBYTE = 1024 * 1024

NEEDS = {"nothing": "nothing", "hub": "download", "file": "your file"}
LEGEND = """\
needs: nothing    the weights are in a Python package that is installed already
       download   the weights are fetched from their authors, once
       your file  the authors hand the weights out on request; use --weights

Without internet access, fetch the file elsewhere and give it with --weights.
Any other model of timm: slicevote-export timm:NAME"""


class ExportByName(TyperGroup):
    """Reads `slicevote-export NAME ...` as `slicevote-export export NAME ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take a word that is not a command as the name of a backbone."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["export", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=ExportByName,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Turn a pretrained backbone into one ONNX file that slicevote-server can run.\n\n"
        "The file takes grey slices and returns unit vectors. Everything particular to the backbone is inside, and so "
        "is a description of it.\n\n"
        "Examples:\n\n"
        "  slicevote-export list\n\n"
        "  slicevote-export efficientnet-lite0\n\n"
        "  slicevote-export dinov1-vits16 --out dino.onnx\n\n"
        "  slicevote-export inspect dino.onnx"
    ),
)
problems = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{metadata.version('slicevote')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_backbones(as_json: AsJson = False) -> None:
    """List the backbones: length of an embedding, file size, licence of the weights, and what an export needs.

    With --json also where the weights come from, and the precisions that a backbone is not exported in.
    """
    if as_json:
        _print_json([_as_document(spec) for spec in BACKBONES])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "dimension", "size", "licence", "needs"):
        justify: Literal["right", "left"] = "right" if heading in ("dimension", "size") else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for spec in BACKBONES:
        size = f"{spec.size_bytes / MEBIBYTE:.0f} MiB"
        table.add_row(spec.name, str(spec.dimension), size, spec.licence, NEEDS[spec.source.need])
    output.print(table)
    output.print()
    for spec in BACKBONES:
        if spec.note:
            output.print(f"{spec.name}: {spec.note}")
    output.print(LEGEND)


@app.command("export")
def export(
    name: Annotated[
        str, typer.Argument(help="A name that `slicevote-export list` shows, or timm:NAME for any other model of timm.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; an existing one is replaced. By default NAME.onnx in the current folder.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to use instead of a download: .pth or .safetensors, for DreamSim its .zip.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="fp32; fp16, half the size, for GPUs; int8, a quarter, for transformers on CPUs."),
    ] = "fp32",
    check_on: Annotated[
        Path | None,
        typer.Option(
            help="Folder of volumes; reports how many of their slices keep their nearest neighbour.",
            exists=True,
            show_default=False,
        ),
    ] = None,
    backbone_name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Name of the backbone in the file, if not NAME. A server keeps one archive per name.",
            show_default=False,
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Write the file even if it differs from PyTorch too much.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export one backbone. `slicevote-export NAME` is short for `slicevote-export export NAME`.

    The file is compared with PyTorch before it is written, and the result is part of its description.
    """
    from slicevote_exporters.export import ExportRequest, export_backbone, resolve

    spec = resolve(name)
    if out is None:
        stem = backbone_name or spec.name
        out = Path(f"{stem}.onnx" if precision == "fp32" else f"{stem}-{precision}.onnx")
    request = ExportRequest(
        spec=spec,
        out=out,
        weights=weights,
        precision=precision,
        name=backbone_name,
        check_on=check_on,
        force=force,
    )
    with problems.status("starting") as status:
        report = export_backbone(request, say=status.update)
    if as_json:
        _print_json(_report_document(report))
    else:
        _print_report(report)


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file written by slicevote-export.")], as_json: AsJson = False
) -> None:
    """Print what a backbone's file says about itself: its weights, licence, precision, and comparison with PyTorch."""
    document = manifests.to_dict(manifests.read(file))
    if as_json:
        _print_json(document)
        return
    embedding = document["golden"]["embedding"]
    document["golden"]["embedding"] = f"{len(embedding)} numbers, starting with {embedding[:3]}"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _flattened(document):
        table.add_row(key, str(value))
    output.print(table)


def _print_report(report: ExportReport) -> None:
    manifest, parity, checked = report.manifest, report.manifest.parity, report.neighbours
    lines = [f"note: {note}" for note in report.notes]
    if checked is not None:
        lines += [
            f"on {checked.slice_count} slices of {checked.volume_count} volumes: {checked.unchanged_share:.1%} keep "
            "their nearest neighbour",
            f"  cosine to PyTorch at least {checked.minimum_cosine:.6f}, mean {checked.mean_cosine:.6f}",
        ]
    lines += [
        f"{'replaced' if report.replaced else 'wrote'} {report.path}",
        f"  {manifest.name}, {manifest.dimension} dimensions, {manifest.precision}, "
        f"{report.size_bytes / MEBIBYTE:.1f} MiB; opens in {report.load_seconds:.2f} s",
        f"  compared with PyTorch on {parity.input_count} slices: cosine at least {parity.minimum_cosine:.7f}",
    ]
    if report.below_bar:
        problems.print("slicevote-export: the file differs from PyTorch too much and was written because of --force")
    for line in lines:
        output.print(line, soft_wrap=True)


def _report_document(report: ExportReport) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "replaced": report.replaced,
        "size_bytes": report.size_bytes,
        "load_seconds": round(report.load_seconds, 3),
        "export_seconds": round(report.export_seconds, 3),
        "below_bar": report.below_bar,
        "notes": list(report.notes),
        "neighbours": None if report.neighbours is None else asdict(report.neighbours),
        "manifest": manifests.to_dict(report.manifest),
    }


def _flattened(document: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows += _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                rows += _flattened(item, f"{prefix}{key}[{index}].")
        else:
            rows.append((prefix + key, value))
    return rows


def _as_document(spec: BackboneSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "family": spec.family,
        "dimension": spec.dimension,
        "size_bytes": spec.size_bytes,
        "licence": spec.licence,
        "needs": spec.source.need,
        "weights": spec.source.description,
        "file_name": spec.source.file_name,
        "url": spec.source.url,
        "refused_precisions": dict(spec.refused_precisions),
        "note": spec.note,
    }


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def main() -> None:
    """Run the command. Exit 0: done; 1: it could not be done; 2: misuse."""
    try:
        app()
    except UnknownBackbone as error:
        problems.print(f"slicevote-export: {error}")
        sys.exit(2)
    except ExportError as error:
        problems.print(f"slicevote-export: {error}")
        sys.exit(1)
