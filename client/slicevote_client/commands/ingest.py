"""`slicevote ingest`: adds volumes to the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slicevote_client.bulk import DEFAULT_PARALLEL, IngestOutcome, ingest_all, stops_all
from slicevote_client.client import DEFAULT_SERVER, Client
from slicevote_client.commands import inputs, printing
from slicevote_client.commands.arguments import (
    JsonOption,
    ManifestOption,
    ModalityOption,
    NoManifestOption,
    ServerOption,
    checked,
    label_pairs,
)
from slicevote_client.commands.failures import explained
from slicevote_client.commands.progress import progress
from slicevote_client.commands.terminal import say, say_error
from slicevote_client.errors import ServerError
from slicevote_client.options import SAMPLING_FORMS, sampling_message

TUNING = "What is stored, and how"


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, folders, or trees of folders.", metavar="PATH...", show_default=False)
    ],
    modality: ModalityOption = "",
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="Label of every volume; may be repeated.",
            show_default=False,
            metavar="KEY=VALUE",
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Skip volumes that the archive has with as many slices, whatever their labels and sampling; resumes "
            "an interrupted ingest.",
        ),
    ] = False,
    manifest: ManifestOption = None,
    no_manifest: NoManifestOption = False,
    with_source: Annotated[
        bool,
        typer.Option("--source/--no-source", help="Store the path, so that results name it.", rich_help_panel=TUNING),
    ] = True,
    with_patient_key: Annotated[
        bool,
        typer.Option(
            "--patient-key/--no-patient-key",
            help="Store a keyed hash of the PatientID, so that a search can leave out the query's own patient.",
            rich_help_panel=TUNING,
        ),
    ] = True,
    sampling: Annotated[
        str,
        typer.Option(
            help=f"Which slices to index: {SAMPLING_FORMS}.",
            rich_help_panel=TUNING,
            callback=checked(sampling_message),
        ),
    ] = "all",
    parallel: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Number of volumes at a time; more help where the server has a GPU.",
            rich_help_panel=TUNING,
        ),
    ] = DEFAULT_PARALLEL,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Add volumes to the archive; those that it has already are replaced.

    A volume is acknowledged once it is on the server's disk. Files that cannot be read are named on stderr and the rest
    goes on; the exit code is then 1. A PATH that does not exist stops the command before anything is sent.
    """
    labels = dict(label_pairs(label))
    if "modality" in labels:
        raise typer.BadParameter(
            "the modality decides how pixel values are read; give it as --modality", param_hint="--label"
        )
    found = inputs.discover_volumes(paths, modality, manifest, no_manifest, quiet=as_json)
    inputs.say_problems(found)
    inputs.say_warnings(found)
    outcomes: list[IngestOutcome] = []
    stopped: ServerError | None = None
    interrupted = False
    with Client(server) as client, progress("ingesting", len(found.volumes), as_json) as advance:
        line_of = printing.outcome_lines(found.volumes)
        try:
            for outcome in ingest_all(
                client,
                found.volumes,
                labels=labels,
                source=None if with_source else "",
                sampling=sampling,
                with_patient_key=with_patient_key,
                parallel=parallel,
                skip_existing=skip_existing,
            ):
                outcomes.append(outcome)
                if outcome.error is not None and not stops_all(outcome.error):
                    say_error(f"not ingested: {outcome.volume.source}: {outcome.error}")
                advance(line_of(outcome))
        except ServerError as error:
            if not outcomes:
                raise
            stopped = error
        except KeyboardInterrupt:
            interrupted = True
    outcomes.sort(key=lambda outcome: outcome.position)
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    skipped = [outcome.volume.id for outcome in outcomes if outcome.was_there]
    not_sent = len(found.volumes) - len(outcomes)
    failures = len(found.problems) + len(found.volumes) - len(results) - len(skipped)
    if as_json:
        printing.print_json(
            {
                "ingested": results,
                "already_there": skipped,
                "not_read": inputs.problem_list(found.problems),
                "warnings": inputs.problem_list(found.warnings),
                "not_sent": not_sent,
                "failures": failures,
            }
        )
    else:
        slices = sum(result.volume.indexed_slice_count for result in results)
        already = f"{len(skipped)} already there, " if skip_existing else ""
        say(
            f"{printing.counted(len(results), 'volume')} with {printing.counted(slices, 'slice')} ingested, {already}"
            f"{printing.counted(failures, 'failure')}"
        )
    if stopped is not None:
        hint = "; ingest again with --skip-existing to go on" if not_sent else ""
        say_error(f"error: {explained(stopped)}; {not_sent} volumes were not sent{hint}")
    if interrupted:
        say_error("interrupted; volumes under way may or may not be stored. Ingest again with --skip-existing to go on")
        raise typer.Exit(130)
    if not found.volumes:
        say_error(f"error: {inputs.nothing_found(found, *paths)}")
    if failures or not outcomes:
        raise typer.Exit(1)
