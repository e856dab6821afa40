"""`slicevote search`: ranks the volumes of the archive by how much they look like one volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from slicevote_client.client import DEFAULT_SERVER, Client
from slicevote_client.commands import inputs, printing
from slicevote_client.commands.arguments import (
    BackboneOption,
    FilterOption,
    JsonOption,
    ManifestOption,
    ModalityOption,
    NoManifestOption,
    ServerOption,
    checked,
    label_conditions,
)
from slicevote_client.commands.progress import Advance, progress
from slicevote_client.commands.selection import check_labels, resolve_id
from slicevote_client.commands.terminal import printable, say, say_error
from slicevote_client.options import (
    AGGREGATION_FORMS,
    INDEXES,
    SAMPLING_FORMS,
    aggregation_message,
    index_value,
    sampling_message,
)
from slicevote_client.results import Ranking, Tally

METHOD = "Method"
CANDIDATES = "Which volumes may vote"


def _check_indexes(text: str) -> None:
    for name in text.split(","):
        index_value(name)


def _slab(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise typer.BadParameter(f"'{printable(text)}' is not FIRST:LAST, such as 40:60", param_hint="--slab")
    return int(first), int(last)


def search(
    path: Annotated[
        Path, typer.Argument(help="A file, or a folder with one series.", metavar="PATH", show_default=False)
    ],
    modality: ModalityOption = "",
    top: Annotated[int, typer.Option(min=1, max=1000, help="Length of the ranking.")] = 10,
    pick: Annotated[
        int | None,
        typer.Option(min=1, help="Number of the volume, where PATH holds several.", show_default=False),
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Re-rank by late interaction (MaxSim).")] = False,
    label: FilterOption = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            help="ID of a volume that may not vote, or its first characters; may be repeated.",
            metavar="ID",
            show_default=False,
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    include_own: Annotated[
        bool,
        typer.Option(
            "--include-own",
            help="Let the query itself vote, and the other volumes of its series, study and patient.",
            rich_help_panel=CANDIDATES,
        ),
    ] = False,
    sampling: Annotated[
        str,
        typer.Option(
            help=f"Which slices vote: {SAMPLING_FORMS}.", rich_help_panel=METHOD, callback=checked(sampling_message)
        ),
    ] = "all",
    aggregation: Annotated[
        str,
        typer.Option(
            help=f"How hits become votes: {AGGREGATION_FORMS}.",
            rich_help_panel=METHOD,
            callback=checked(aggregation_message),
        ),
    ] = "count",
    index: Annotated[
        str,
        typer.Option(
            help=f"Where nearest slices are looked up: {', '.join(INDEXES)}. Several, separated by commas, are shown "
            "side by side.",
            rich_help_panel=METHOD,
            callback=checked(_check_indexes),
        ),
    ] = "hnsw",
    neighbours: Annotated[int, typer.Option(min=1, max=100, help="Hits per slice.", rich_help_panel=METHOD)] = 1,
    slab: Annotated[
        str | None,
        typer.Option(
            help="Use only slices FIRST to LAST of the query, counted from 0, both included.",
            metavar="FIRST:LAST",
            show_default=False,
            rich_help_panel=METHOD,
        ),
    ] = None,
    stop_when_decided: Annotated[
        bool,
        typer.Option(
            "--stop-when-decided", help="End as soon as the first match cannot change.", rich_help_panel=METHOD
        ),
    ] = False,
    manifest: ManifestOption = None,
    no_manifest: NoManifestOption = False,
    server: ServerOption = DEFAULT_SERVER,
    backbone: BackboneOption = "",
    as_json: JsonOption = False,
) -> None:
    """Rank the volumes of the archive by how much they look like this one.

    The query need not be in the archive. If it is, it does not vote for itself, nor do the volumes known to be of its
    series, study or patient, unless --include-own is given.
    """
    part = _slab(slab)
    conditions = label_conditions(label)
    found = inputs.discover_volumes([path], modality, manifest, no_manifest, quiet=True)
    volume = inputs.pick_volume(found, path, pick)
    if part is not None and part[1] >= len(volume):
        raise typer.BadParameter(f"the query has slices 0 to {len(volume) - 1}", param_hint="--slab")
    found = replace(found, volumes=[volume])
    inputs.say_warnings(found)
    rankings: list[Ranking] = []
    with Client(server) as client:
        check_labels(client, conditions, backbone=backbone)
        excluded = [resolve_id(client, volume_id, backbone=backbone) for volume_id in exclude or ()]
        for name in index.split(","):
            with progress("searching", None, as_json) as advance:

                def show(tally: Tally, advance: Advance = advance) -> None:
                    advance(None, done=tally.received_slice_count, total=tally.planned_slice_count)

                rankings.append(
                    client.search(
                        volume,
                        index=name,
                        sampling=sampling,
                        aggregation=aggregation,
                        neighbours=neighbours,
                        top_k=top,
                        labels=conditions,
                        exclude_volumes=excluded,
                        include_own=include_own,
                        late_interaction=rerank,
                        slab=part,
                        stop_when_decided=stop_when_decided,
                        backbone=backbone,
                        on_tally=show,
                    )
                )
    if any(ranking.patient_secret_differs for ranking in rankings):
        say_error(f"warning: {printing.secret_differs()}")
    if as_json:
        query = {"volume_id": volume.id, "modality": volume.modality, "source": volume.source, "slices": len(volume)}
        first, *others = map(printing.plain, rankings)
        warnings = inputs.problem_list(found.warnings)
        printing.print_json({"query": query, **first, "other_indexes": others, "warnings": warnings})
        return
    for ranking in rankings:
        say(f"{volume.source} ({len(volume)} slices), {ranking.index}")
        printing.print_ranking(ranking)
        for line in printing.ranking_notes(ranking, filtered=bool(conditions or excluded)):
            say(line)
    if len(rankings) > 1:
        printing.print_side_by_side(rankings)
    if not include_own:
        say(printing.own_note(rankings[0].own_excluded))
