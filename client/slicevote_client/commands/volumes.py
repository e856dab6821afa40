"""`slicevote volumes`, `show`, `delete`: the volumes of the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from slicevote.contract import MAX_THUMBNAILS

from slicevote_client.client import DEFAULT_SERVER, Client
from slicevote_client.commands import printing
from slicevote_client.commands.arguments import (
    BackboneOption,
    FilterOption,
    JsonOption,
    ServerOption,
    VolumeArgument,
    label_conditions,
)
from slicevote_client.commands.failures import CommandError
from slicevote_client.commands.selection import check_labels, resolve_id
from slicevote_client.commands.terminal import say


def volumes(
    label: FilterOption = None,
    server: ServerOption = DEFAULT_SERVER,
    backbone: BackboneOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the volumes of the archive."""
    conditions = label_conditions(label)
    with Client(server) as client:
        check_labels(client, conditions, backbone=backbone)
        found = list(client.volumes(labels=conditions, backbone=backbone))
    if as_json:
        printing.print_json(found)
        return
    printing.print_volumes(found)
    say(printing.counted(len(found), "volume"))


def show(
    volume: VolumeArgument,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            help="Write the thumbnails of the slices (WebP, axial) into a folder in this one, named after the volume.",
            show_default=False,
            metavar="FOLDER",
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Show what the archive knows of one volume."""
    with Client(server) as client:
        volume_id = resolve_id(client, volume)
        record = client.volume(volume_id)
        slices = client.slices(volume_id)
        indices = [entry.index for entry in slices]
        # A folder of its own: pictures of two volumes must not mix.
        folder = None if thumbnails is None else thumbnails / volume_id.replace(":", "_")
        written = 0 if folder is None else _write_thumbnails(client, volume_id, indices, folder)
    if as_json:
        listed = [
            {"index": entry.index, "position_mm": entry.position_mm, "sop_instance_uid": entry.sop_instance_uid}
            for entry in slices
        ]
        printing.print_json({**printing.plain(record), "slices": listed, "thumbnails_written": written})
        return
    for line in printing.volume_lines(record, slices):
        say(line)
    if folder is not None:
        say(f"thumbnails  {written} files in {folder}")


def delete(volume: VolumeArgument, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Delete a volume from the archive."""
    with Client(server) as client:
        record = client.delete(resolve_id(client, volume))
    if as_json:
        printing.print_json({"deleted": record})
    else:
        say(f"deleted {record.volume_id} ({record.indexed_slice_count} slices)")


def _write_thumbnails(client: Client, volume_id: str, indices: list[int], folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = 0
        for start in range(0, len(indices), MAX_THUMBNAILS):
            for entry in client.slices(volume_id, thumbnails=indices[start : start + MAX_THUMBNAILS]):
                if entry.thumbnail_webp:
                    (folder / f"slice-{entry.index:05d}.webp").write_bytes(entry.thumbnail_webp)
                    written += 1
    except OSError as error:
        raise CommandError(
            f"thumbnails cannot be written into {folder.parent}: {error.strerror}; name a folder that you may write to"
        ) from error
    return written
