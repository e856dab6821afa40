"""`slicevote-server archive`: inspect and maintain the archives of a data folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slicevote_server.archive.data_folder import DataFolder
    from slicevote_server.archive.interface import Archive

archive_app = typer.Typer(
    help="Inspect and maintain the archives of a data folder. No server may be running on it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    Path,
    typer.Option("--data", help="Data folder of a server.", envvar="SLICEVOTE_DATA", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@archive_app.command("info")
def info(data: DataOption, as_json: JsonOption = False) -> None:
    """Show what the archives of a data folder hold, and what they were made with."""
    found = []
    for _, archive in _archives(data):
        occupancy, provenance = archive.occupancy(), archive.provenance()
        found.append(
            {
                **asdict(archive.identity),
                "volumes": occupancy.volume_count,
                "slices": occupancy.slice_count,
                "unindexed_slices": occupancy.unindexed_slice_count,
                "disk_bytes": occupancy.disk_bytes,
                "numerics": provenance.numerics and provenance.numerics.as_mapping(),
                "patient_secret_fingerprint": provenance.patient_secret_fingerprint,
            }
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for entry in found:
        typer.echo(
            f"{entry['backbone']}: {entry['volumes']} volumes, {entry['slices']} slices "
            f"({entry['unindexed_slices']} searched without the graph), {entry['disk_bytes'] / 1e6:.1f} MB"
        )


@archive_app.command("rebuild-lsh")
def rebuild_lsh(
    data: DataOption,
    lsh_bits: Annotated[
        int, typer.Option(min=0, max=65536, help="Bits of an LSH code, as 'serve' is given; 0: two per dimension.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the LSH indexes of a data folder from its archives."""
    from slicevote_server.archive.lsh import LshIndex, LshSettings

    rebuilt = []
    for folder, archive in _archives(data):
        backbone = archive.identity.backbone
        index = LshIndex(folder.lsh(backbone), archive, LshSettings(lsh_bits))
        rebuilt.append({"backbone": backbone, "bits": index.bits, "slices": index.rebuild()})
    if as_json:
        typer.echo(json.dumps(rebuilt, indent=2))
        return
    for entry in rebuilt:
        typer.echo(f"{entry['backbone']}: {entry['slices']} slices, {entry['bits']} bits each")


def _archives(data: Path) -> Iterator[tuple[DataFolder, Archive]]:
    """Open the archives of a data folder one after another, whatever they were made for."""
    from slicevote_server.archive.data_folder import DataFolder
    from slicevote_server.archive.kinds import open_archive

    with contextlib.closing(DataFolder(data, create=False)) as folder:
        for backbone in folder.backbones():
            with contextlib.closing(open_archive(folder.archive(backbone), None)) as archive:
                yield folder, archive
