"""Options that several commands share, and the checks of what was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from slicevote_volumes.modality import check_modality, normalise_modality

from slicevote_client.address import server_address
from slicevote_client.commands.terminal import printable
from slicevote_client.errors import InvalidOption

INPUT = "Input"
ARCHIVE = "Server and output"


def checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Return a callback that lets an option's text through as it is, if the check does.

    Args:
        check: Raises InvalidOption for a text that is not allowed.
    """

    def callback(text: str) -> str:
        try:
            check(text)
        except InvalidOption as error:
            raise typer.BadParameter(printable(error)) from error
        return text

    return callback


def _modality(text: str) -> str:
    try:
        return check_modality(text)
    except ValueError as error:
        raise typer.BadParameter(printable(error)) from error


ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        help="HOST or HOST:PORT of the server.",
        envvar="SLICEVOTE_SERVER",
        show_default=True,
        rich_help_panel=ARCHIVE,
        callback=checked(server_address),
    ),
]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="Name of the backbone; by default the server's first.",
        rich_help_panel=ARCHIVE,
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=ARCHIVE)]
ModalityOption = Annotated[
    str,
    typer.Option(
        "--modality",
        help="DICOM modality code, such as CT or MR, of files that name none in their header or a manifest. CT is "
        "windowed in HU.",
        show_default=False,
        callback=_modality,
    ),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="TSV with labels: a column path, and optionally modality, patient and any label. By default, a "
        "manifest.tsv beside or above the files.",
        show_default=False,
        rich_help_panel=INPUT,
        exists=True,
        dir_okay=False,
    ),
]
NoManifestOption = Annotated[
    bool, typer.Option("--no-manifest", help="Do not look for a manifest.tsv.", rich_help_panel=INPUT)
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Only volumes with this label. Repeat for several labels; the same key again means any of the values.",
        show_default=False,
        metavar="KEY=VALUE",
    ),
]
VolumeArgument = Annotated[
    str, typer.Argument(metavar="ID", help="ID of the volume, or its first characters.", show_default=False)
]


def label_pairs(texts: list[str] | None) -> list[tuple[str, str]]:
    """Return the keys and values of KEY=VALUE texts."""
    pairs = []
    for text in texts or ():
        key, _, value = text.partition("=")
        if not (key and value):
            raise typer.BadParameter(f"'{printable(text)}' is not KEY=VALUE", param_hint="--label")
        pairs.append((key, value))
    return pairs


def label_conditions(texts: list[str] | None) -> dict[str, list[str]]:
    """Return, for every label that was named, the values of which a volume may have any."""
    conditions: dict[str, list[str]] = {}
    for key, value in label_pairs(texts):
        if key == "modality":
            try:
                value = normalise_modality(value)
            except ValueError as error:
                raise typer.BadParameter(printable(error), param_hint="--label") from error
        conditions.setdefault(key, []).append(value)
    return conditions
