"""`slicevote`: fills and searches an archive from files."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from slicevote_volumes import Discovery, Problem, Volume, VolumeError, discover
from slicevote_volumes.manifest import Manifest, find_manifest, labelled, load_manifest
from slicevote_volumes.modality import check_modality
from typer.exceptions import TyperException

from slicevote_client import printing
from slicevote_client.bulk import DEFAULT_PARALLEL, IngestOutcome, ingest_all
from slicevote_client.client import DEFAULT_SERVER, Client
from slicevote_client.errors import ServerError
from slicevote_client.options import AGGREGATION_HELP, INDEXES, SAMPLING_HELP
from slicevote_client.progress import Advance, progress
from slicevote_client.results import Ranking, Tally
from slicevote_client.terminal import console, printable, say, say_error

app = typer.Typer(
    name="slicevote",
    help="Finds the volumes in an archive that look most like the one in front of you.\n\n"
    "Reads DICOM series (a file, a folder, a tree with many series) and NIfTI (3-D; 4-D as one volume for every "
    "protocol), and sends the slices that the server asks for.",
    epilog="A first round:\n\nslicevote ingest /data/scans\n\nslicevote search /data/scans/patient-7/ct\n\n"
    "slicevote status",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ServerOption = Annotated[
    str, typer.Option("--server", help="HOST:PORT of the server.", envvar="SLICEVOTE_SERVER", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _check_modality(text: str) -> str:
    try:
        return check_modality(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ModalityOption = Annotated[
    str,
    typer.Option(
        help="DICOM modality code of volumes that do not say it themselves, such as NIfTI files: CT, MR.",
        callback=_check_modality,
    ),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        help="TSV with labels: a column path, and optionally modality, patient and any label. Without it, a "
        "manifest.tsv beside or above the files is used where it lists them.",
        show_default=False,
    ),
]
NoManifestOption = Annotated[bool, typer.Option("--no-manifest", help="Do not look for a manifest.tsv.")]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", help="KEY=VALUE; may be given several times.", show_default=False, metavar="KEY=VALUE"),
]


@app.callback()
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show:
        say(version("slicevote"))
        raise typer.Exit


@app.command(epilog="Example:\n\nslicevote ingest /data/scans --label site=north")
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders or trees.", metavar="PATH...")],
    server: ServerOption = DEFAULT_SERVER,
    modality: ModalityOption = "",
    label: LabelsOption = None,
    manifest: ManifestOption = None,
    no_manifest: NoManifestOption = False,
    sampling: Annotated[str, typer.Option(help=f"Which slices to index: {SAMPLING_HELP}.")] = "all",
    with_source: Annotated[
        bool, typer.Option("--source/--no-source", help="Keep the path, so that results tell where a volume lies.")
    ] = True,
    parallel: Annotated[
        int, typer.Option(min=1, max=16, help="Volumes at a time; more help where the server has a GPU.")
    ] = DEFAULT_PARALLEL,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out volumes that the archive has with as many slices, whatever their labels and sampling: goes "
            "on where a long ingest was broken off.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Adds volumes to the archive; one that is there already is replaced.

    A volume is acknowledged once it is on the server's disk. What cannot be read is named, the rest goes on, and the
    exit code is 1 at the end.
    """
    labels = _parse_labels(label)
    found = _discover(paths, modality, manifest, no_manifest, quiet=as_json)
    _say_problems(found)
    outcomes: list[IngestOutcome] = []
    unreachable: ServerError | None = None
    with Client(server) as client, progress("ingesting", len(found.volumes), as_json) as advance:
        try:
            for outcome in ingest_all(
                client,
                found.volumes,
                labels=labels,
                source=None if with_source else "",
                sampling=sampling,
                parallel=parallel,
                skip_existing=skip_existing,
            ):
                outcomes.append(outcome)
                if outcome.error is not None:
                    say_error(f"not ingested: {outcome.volume.source}: {outcome.error}")
                advance(printing.outcome_line(outcome))
        except ServerError as error:
            if not outcomes:
                raise
            unreachable = error
    outcomes.sort(key=lambda outcome: outcome.position)
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    there = [outcome.volume.id for outcome in outcomes if outcome.was_there]
    not_sent = len(found.volumes) - len(outcomes)
    failures = len(found.problems) + len(found.volumes) - len(results) - len(there)
    if as_json:
        printing.print_json(
            {
                "ingested": results,
                "already_there": there,
                "not_read": _listed(found.problems),
                "warnings": _listed(_warnings(found)),
                "not_sent": not_sent,
                "failures": failures,
            }
        )
    else:
        slices = sum(result.volume.indexed_slice_count for result in results)
        already = f"{len(there)} were there already, " if skip_existing else ""
        say(f"{len(results)} volumes with {slices} slices ingested, {already}{failures} failures")
    if unreachable is not None:
        hint = "; ingest again with --skip-existing to go on" if not_sent else ""
        say_error(f"error: {unreachable}; {not_sent} volumes were not sent{hint}")
    if not found.volumes and not failures:
        say_error("error: no volume was found in what was given")
    if failures or not outcomes:
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\nslicevote search /data/scans/patient-7/ct\n\n"
    "slicevote search head.nii.gz --modality MR --sampling random:20 --aggregation gaussian --top 5\n\n"
    "slicevote search ct/ --label body_region=chest --label body_region=abdomen --index exact --json"
)
def search(
    path: Annotated[Path, typer.Argument(help="A file, or a folder with one series.", metavar="PATH")],
    server: ServerOption = DEFAULT_SERVER,
    index: Annotated[
        str, typer.Option(help="Where to look up: hnsw, lsh, exact. Several, with commas: side by side.")
    ] = "hnsw",
    sampling: Annotated[str, typer.Option(help=f"Which slices vote: {SAMPLING_HELP}.")] = "all",
    aggregation: Annotated[str, typer.Option(help=f"How hits become votes: {AGGREGATION_HELP}.")] = "count",
    neighbours: Annotated[int, typer.Option(min=1, max=100, help="Hits a slice.")] = 1,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Length of the ranking.")] = 10,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="Only volumes with this label, KEY=VALUE; the same key again: any of the values.",
            show_default=False,
            metavar="KEY=VALUE",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="A volume that may not vote.", metavar="ID", show_default=False),
    ] = None,
    include_own: Annotated[
        bool, typer.Option("--include-own", help="Let the query itself and its patient's other volumes vote, too.")
    ] = False,
    rerank: Annotated[bool, typer.Option("--rerank", help="Re-rank by late interaction (MaxSim).")] = False,
    slab: Annotated[
        str | None, typer.Option(help="FIRST:LAST slice of the part that counts.", show_default=False)
    ] = None,
    stop_when_decided: Annotated[
        bool, typer.Option("--stop-when-decided", help="End as soon as the first match cannot change.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="Name of the backbone; by default the server's first.")] = "",
    modality: ModalityOption = "",
    manifest: ManifestOption = None,
    no_manifest: NoManifestOption = False,
    pick: Annotated[
        int | None, typer.Option(min=1, help="Which volume, where PATH holds several.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ranks the volumes of the archive by how much they look like this one.

    The query need not be in the archive. If it is, it does not vote for itself, nor do its patient's other volumes,
    unless --include-own is given.
    """
    indexes = index.split(",")
    unknown = [name for name in indexes if name not in INDEXES]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is none of {', '.join(INDEXES)}", param_hint="--index")
    found = _discover([path], modality, manifest, no_manifest, quiet=True)
    volume = _pick(found, path, pick)
    warnings = [warning for warning in _warnings(found) if warning.path in volume.paths]
    for warning in warnings:
        say_error(f"warning: {warning.path}: {warning.reason}")
    conditions = _label_conditions(label)
    rankings: list[Ranking] = []
    with Client(server) as client:
        for name in indexes:
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
                        exclude_volumes=exclude or (),
                        include_own=include_own,
                        late_interaction=rerank,
                        slab=_parse_slab(slab),
                        stop_when_decided=stop_when_decided,
                        backbone=backbone,
                        on_tally=show,
                    )
                )
    if as_json:
        query = {"volume_id": volume.id, "modality": volume.modality, "source": volume.source, "slices": len(volume)}
        first, *others = map(printing.plain, rankings)
        printing.print_json(
            {
                "query": query,
                "own_excluded": not include_own,
                **first,
                "warnings": _listed(warnings),
                "other_indexes": others,
            }
        )
        return
    out = console()
    for ranking in rankings:
        out.print(printing.ranking_table(ranking, f"{volume.source} ({len(volume)} slices), {ranking.index}"))
        for line in printing.ranking_notes(ranking):
            say(line)
    if len(rankings) > 1:
        out.print(printing.side_by_side(rankings))
    if not include_own:
        say("the query and its patient's other volumes did not vote; --include-own lets them")


@app.command()
def volumes(
    server: ServerOption = DEFAULT_SERVER,
    label: LabelsOption = None,
    backbone: Annotated[str, typer.Option(help="Name of the backbone; by default the server's first.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Lists the volumes of the archive."""
    conditions = _label_conditions(label)
    with Client(server) as client:
        found = list(client.volumes(labels=conditions, backbone=backbone))
    if as_json:
        printing.print_json(found)
        return
    console().print(printing.volume_table(found))
    say(f"{len(found)} volumes")


@app.command()
def show(
    volume_id: Annotated[str, typer.Argument(metavar="ID", help="Name of the volume.")],
    server: ServerOption = DEFAULT_SERVER,
    thumbnails: Annotated[
        Path | None,
        typer.Option(help="Write the slices' thumbnails (WebP) into this folder.", show_default=False, file_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what the archive knows of one volume."""
    with Client(server) as client:
        record = client.volume(volume_id)
        slices = client.slices(volume_id)
        written = _write_thumbnails(client, volume_id, [entry.index for entry in slices], thumbnails)
    if as_json:
        listed = [
            {"index": entry.index, "position_mm": entry.position_mm, "sop_instance_uid": entry.sop_instance_uid}
            for entry in slices
        ]
        printing.print_json({**printing.plain(record), "slices": listed, "thumbnails_written": written})
        return
    for line in printing.volume_lines(record, slices):
        say(line)
    if thumbnails is not None:
        say(f"thumbnails  {written} files in {thumbnails}")


@app.command()
def delete(
    volume_id: Annotated[str, typer.Argument(metavar="ID", help="Name of the volume.")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Takes a volume out of the archive."""
    with Client(server) as client:
        record = client.delete(volume_id)
    if as_json:
        printing.print_json({"deleted": record})
    else:
        say(f"deleted {record.volume_id} ({record.indexed_slice_count} slices)")


@app.command()
def status(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Says what the server holds and how it runs."""
    with Client(server) as client:
        document = client.status()
    if as_json:
        printing.print_json(document)
        return
    for line in printing.status_lines(document):
        say(line)


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on misuse, 1 on failure."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except TyperException as error:
        for line in f"error: {error.format_message()}".splitlines():
            say_error(line)
        sys.exit(error.exit_code)
    except (ServerError, VolumeError, OSError) as error:
        say_error(f"error: {error}")
        sys.exit(1)
    except ValueError as error:
        say_error(f"error: {error}")
        sys.exit(2)


def _discover(paths: list[Path], modality: str, manifest: Path | None, no_manifest: bool, *, quiet: bool) -> Discovery:
    """Finds the volumes and gives them the labels of the manifest that lists them."""
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"there is no file or folder {printable(path)}")
    with progress("reading headers", None, quiet) as advance:
        met = itertools.count(1)
        found = discover(paths, modality=modality, on_file=lambda _: advance(None, done=next(met)))
    given = load_manifest(manifest) if manifest is not None else None
    used: set[Path] = set()
    known: dict[Path, Manifest | None] = {}
    volumes = []
    for volume in found.volumes:
        folder = volume.paths[0].parent
        if given is None and not no_manifest and folder not in known:
            known[folder] = find_manifest(folder)
        source = given or known.get(folder)
        row = source.row_for(volume) if source is not None else None
        if source is not None and row is not None:
            used.add(source.file)
        volumes.append(volume if row is None else labelled(volume, row))
    if used and not quiet:
        say(f"labels from {', '.join(map(str, sorted(used)))}")
    return replace(found, volumes=volumes)


def _warnings(found: Discovery) -> list[Problem]:
    return list(getattr(found, "warnings", ()))


def _say_problems(found: Discovery) -> None:
    for problem in found.problems:
        say_error(f"not read: {problem.path}: {problem.reason}")
    for warning in dict.fromkeys(_warnings(found)):
        say_error(f"warning: {warning.path}: {warning.reason}")


def _listed(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"path": str(problem.path), "reason": problem.reason} for problem in problems]


def _pick(found: Discovery, path: Path, pick: int | None) -> Volume:
    if not found.volumes:
        reasons = [f"{problem.path}: {problem.reason}" for problem in found.problems]
        raise VolumeError(path, "; ".join(reasons) or "no volume was found in it")
    if len(found.volumes) > 1 and pick is None:
        listed = "\n".join(
            f"  {place}: {len(volume)} slices  {printable(volume.source)}"
            for place, volume in enumerate(found.volumes, 1)
        )
        raise typer.BadParameter(f"{path} holds {len(found.volumes)} volumes; choose one with --pick:\n{listed}")
    if pick is not None and pick > len(found.volumes):
        raise typer.BadParameter(f"{path} holds {len(found.volumes)} volumes", param_hint="--pick")
    return found.volumes[(pick or 1) - 1]


def _label_pairs(label: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for entry in label or ():
        key, separator, value = entry.partition("=")
        if not (key and separator and value):
            raise typer.BadParameter(f"'{printable(entry)}' is not KEY=VALUE", param_hint="--label")
        pairs.append((key, value))
    return pairs


def _parse_labels(label: list[str] | None) -> dict[str, str]:
    labels = dict(_label_pairs(label))
    if "modality" in labels:
        raise typer.BadParameter(
            "the modality decides how grey values are read: give it as --modality", param_hint="--label"
        )
    return labels


def _label_conditions(label: list[str] | None) -> dict[str, list[str]]:
    """Gives, for every label named, the values of which it may have any."""
    conditions: dict[str, list[str]] = {}
    for key, value in _label_pairs(label):
        conditions.setdefault(key, []).append(value)
    return conditions


def _parse_slab(words: str | None) -> tuple[int, int] | None:
    if words is None:
        return None
    first, separator, last = words.partition(":")
    if not (separator and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise typer.BadParameter(f"'{words}' is not FIRST:LAST", param_hint="--slab")
    return int(first), int(last)


def _write_thumbnails(client: Client, volume_id: str, indices: list[int], folder: Path | None) -> int:
    if folder is None:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for start in range(0, len(indices), 256):
        for entry in client.slices(volume_id, thumbnails=indices[start : start + 256]):
            if entry.thumbnail_webp:
                (folder / f"slice-{entry.index:05d}.webp").write_bytes(entry.thumbnail_webp)
                written += 1
    return written
