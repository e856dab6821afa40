"""`slicevote-export`: lists the backbones, exports one, shows what a file says of itself."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from slicevote_exporters import manifest as manifests
from slicevote_exporters.errors import ExportError, UnknownBackbone
from slicevote_exporters.registry import BACKBONES, BackboneSpec

MEBIBYTE = 1024 * 1024


class ExportByName(TyperGroup):
    """Reads `slicevote-export NAME ...` as `slicevote-export export NAME ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Takes a word that is no command for the name of a backbone."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["export", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=ExportByName,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Turns a pretrained backbone into one ONNX file that a slicevote server can run: grey slices in, unit vectors "
        "out, with everything that is particular to the backbone inside, and a description of it.\n\n"
        "Examples:\n\n"
        "  slicevote-export list\n\n"
        "  slicevote-export efficientnet-lite0 --out efficientnet-lite0.onnx\n\n"
        "  slicevote-export dinov1-vits16 --weights dino_deitsmall16_pretrain.pth\n\n"
        "  slicevote-export inspect efficientnet-lite0.onnx"
    ),
)
problems = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.command("list")
def list_backbones(as_json: AsJson = False) -> None:
    """Shows the backbones: dimension, size, licence, where the weights come from and what an export needs."""
    if as_json:
        _print_json([_as_document(spec) for spec in BACKBONES])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "family", "dimension", "size", "licence", "needs", "weights"):
        justify: Literal["right", "left"] = "right" if heading in ("dimension", "size") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in ("licence", "weights"), overflow="fold")
    for spec in BACKBONES:
        size = f"{spec.size_bytes / MEBIBYTE:.0f} MiB"
        source = spec.source
        table.add_row(spec.name, spec.family, str(spec.dimension), size, spec.licence, source.need, source.description)
    output.print(table)
    output.print()
    for spec in BACKBONES:
        if spec.note:
            output.print(f"{spec.name}: {spec.note}")
    output.print("Any other timm model: timm:NAME. A site without internet gives the weights with --weights FILE.")


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="A backbone of the list, or timm:NAME.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; NAME.onnx in this folder if not given.", dir_okay=False)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A checkpoint file (.pth, .safetensors; DreamSim: its .zip) in place of a download."),
    ] = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="Precision of the file.")] = "fp32",
    check_on: Annotated[
        Path | None,
        typer.Option(help="A folder of volumes: how many of their slices keep their nearest neighbour?", exists=True),
    ] = None,
    backbone_name: Annotated[
        str, typer.Option("--name", help="Another name for the backbone; it names the archive.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write the file even if it is below the bar.")] = False,
    as_json: AsJson = False,
) -> None:
    """Exports one backbone. `slicevote-export NAME` is short for `slicevote-export export NAME`.

    The file is compared with PyTorch before it is written. A file of that name is replaced, and the last line says so.
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
    document = {
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
    if as_json:
        _print_json(document)
        return
    for note in report.notes:
        output.print(f"note: {note}", soft_wrap=True)
    if report.below_bar:
        problems.print("slicevote-export: the file is below the bar of its precision and was written for --force")
    if report.neighbours is not None:
        checked = report.neighbours
        output.print(
            f"on {checked.slice_count} slices of {checked.volume_count} volumes: {checked.unchanged_share:.1%} keep "
            f"their nearest neighbour; least cosine {checked.minimum_cosine:.6f}, mean {checked.mean_cosine:.6f}",
            soft_wrap=True,
        )
    parity = report.manifest.parity
    output.print(
        f"{'replaced' if report.replaced else 'wrote'} {report.path}: {report.manifest.name}, "
        f"{report.manifest.dimension} dimensions, {report.manifest.precision}, "
        f"{report.size_bytes / MEBIBYTE:.1f} MiB, opens in {report.load_seconds:.2f} s; cosine to PyTorch over "
        f"{parity.input_count} slices: least {parity.minimum_cosine:.7f}, mean {parity.mean_cosine:.7f}, "
        f"greatest error {parity.maximum_error:.1e}; took {report.export_seconds:.0f} s",
        soft_wrap=True,
    )


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file that slicevote-export wrote.")], as_json: AsJson = False
) -> None:
    """Prints what a backbone's file says of itself."""
    document = manifests.to_dict(manifests.read(file))
    if as_json:
        _print_json(document)
        return
    embedding = document["golden"]["embedding"]
    document["golden"]["embedding"] = f"{len(embedding)} numbers, beginning {embedding[:3]}"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _flattened(document):
        table.add_row(key, str(value))
    output.print(table)


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
    """Entry point. Exit 0: done; 1: it could not be done; 2: misuse."""
    try:
        app()
    except UnknownBackbone as error:
        problems.print(f"slicevote-export: {error}")
        sys.exit(2)
    except ExportError as error:
        problems.print(f"slicevote-export: {error}")
        sys.exit(1)
