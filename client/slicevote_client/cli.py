"""`slicevote`: fills and searches an archive from files."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from slicevote_volumes import VolumeError
from slicevote_volumes.manifest import ManifestError
from typer.exceptions import TyperException

from slicevote_client.commands.failures import CommandError, explained
from slicevote_client.commands.ingest import ingest
from slicevote_client.commands.search import search
from slicevote_client.commands.status import status
from slicevote_client.commands.terminal import say, say_error
from slicevote_client.commands.volumes import delete, show, volumes
from slicevote_client.errors import ServerError
from slicevote_client.patients import PatientSecretError

app = typer.Typer(
    name="slicevote",
    help="Find the volumes in an archive that look most like the one in front of you.\n\n"
    "Reads DICOM series (a file, a folder, a tree with many series) and NIfTI (3-D; 4-D as one volume per "
    "protocol), and sends the slices that the server asks for.",
    epilog="First steps:\n\nslicevote ingest /data/scans\n\nslicevote search /data/scans/patient-7/ct\n\n"
    "slicevote status",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"slicevote {version('slicevote')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)


app.command(epilog="Example:\n\nslicevote ingest /data/scans --label site=north")(ingest)
app.command(
    epilog="Examples:\n\nslicevote search /data/scans/patient-7/ct\n\n"
    "slicevote search head.nii.gz --modality MR --sampling random:20 --aggregation gaussian --top 5\n\n"
    "slicevote search ct/ --label body_region=chest --label body_region=abdomen --index exact --json"
)(search)
for command in (volumes, show, delete, status):
    app.command()(command)


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on misuse, 1 on failure."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names in letters that the locale's encoding does not have are escaped; stderr does so anyway.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except TyperException as error:
        for line in f"error: {error.format_message()}".splitlines():
            say_error(line)
        sys.exit(error.exit_code)
    except ServerError as error:
        say_error(f"error: {explained(error)}")
        sys.exit(1)
    except (CommandError, VolumeError, ManifestError, PatientSecretError, OSError) as error:
        say_error(f"error: {error}")
        sys.exit(1)
