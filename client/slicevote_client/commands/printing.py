"""Answers for people, as tables and lines, and for programs, as JSON.

On a terminal a table fits the width: IDs are shortened to what tells them apart, and long texts are cut. Elsewhere, in
a pipe or a file, every ID and text is complete, one row a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text
from slicevote_volumes import Volume

from slicevote_client.bulk import IngestOutcome
from slicevote_client.commands.selection import short_ids
from slicevote_client.commands.terminal import Middle, console, printable
from slicevote_client.patients import default_secret_file
from slicevote_client.results import IndexedSlice, Ranking, VolumeRecord

_RELATED = {"series": "its series", "study": "its study", "patient": "its patient"}


def print_json(document: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(plain(document), indent=2) + "\n")


def plain(value: object) -> Any:
    """Return results as the types that JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def print_ranking(ranking: Ranking) -> None:
    """Print a ranking as a table."""
    shown = _shown_ids(match.volume.volume_id for match in ranking.matches)
    reranked = any(match.late_interaction_score is not None for match in ranking.matches)
    method = ("score>", "slab", "votes>") if reranked else ("votes>", "share>")
    table = _table("#>", *method, "similarity>", "volume", "labels", "source")
    for rank, match in enumerate(ranking.matches, 1):
        score, slab = match.late_interaction_score, match.matched_slab
        votes = f"{match.votes:.3g}" if match.votes != int(match.votes) else str(int(match.votes))
        by_score = ["-" if score is None else f"{score:.2f}", "-" if slab is None else f"{slab[0]}..{slab[1]}", votes]
        by_votes = [votes, f"{match.share:.0%}"]
        cells = [str(rank), *(by_score if reranked else by_votes), f"{match.similarity_mean:.3f}"]
        _add_row(table, [*cells, shown[match.volume.volume_id]], match.volume)
    console().print(table)
    if reranked:
        console().print("score: late interaction (MaxSim)")


def print_side_by_side(rankings: Sequence[Ranking]) -> None:
    """Print the rankings of several indexes beside each other: votes and volume by rank, and the times below."""
    shown = _shown_ids(match.volume.volume_id for ranking in rankings for match in ranking.matches)
    table = _table("#>", *(f"{ranking.index}: votes, volume" for ranking in rankings))
    for rank in range(max(len(ranking.matches) for ranking in rankings)):
        cells = [
            f"{ranking.matches[rank].votes:5.4g}  {shown[ranking.matches[rank].volume.volume_id]}"
            if rank < len(ranking.matches)
            else "-"
            for ranking in rankings
        ]
        table.add_row(str(rank + 1), *map(printable, cells))
    times = [f"{ranking.times.total_s:.2f} s, lookups {ranking.times.searching_s:.3f} s" for ranking in rankings]
    table.add_row("", *times)
    out = console()
    out.print("side by side")
    out.print(table)


def print_volumes(volumes: Sequence[VolumeRecord]) -> None:
    """Print volumes as a table."""
    shown = _shown_ids(volume.volume_id for volume in volumes)
    table = _table("volume", "slices>", "blank>", "labels", "source")
    for volume in volumes:
        counts = [volume.indexed_slice_count, volume.blank_slice_count]
        _add_row(table, [shown[volume.volume_id], *map(str, counts)], volume)
    console().print(table)


def ranking_notes(ranking: Ranking, *, filtered: bool) -> list[str]:
    """Return what stands behind a ranking, line by line.

    Args:
        ranking: The ranking.
        filtered: The user asked for labels or excluded volumes.
    """
    lines = [
        f"{ranking.voting_slice_count} of {ranking.planned_slice_count} planned slices voted"
        + (f", {ranking.blank_slice_count} were blank" if ranking.blank_slice_count else "")
        + (f"; decided after {ranking.received_slice_count}" if ranking.decided_early else "")
        + f"; {counted(ranking.voted_volume_count, 'volume')} got votes"
    ]
    for key, shares in ranking.label_votes.items():
        shown = ", ".join(f"{share.value or '(none)'} {share.share:.0%}" for share in shares[:5])
        lines.append(f"votes by {key}: {shown}" + (" ..." if len(shares) > 5 else ""))
    times = ranking.times
    lines.append(
        f"{times.total_s:.2f} s with {ranking.backbone} and {ranking.index}"
        + (" (exact, because of the filter)" if ranking.exact_because_filtered and filtered else "")
    )
    lines.append(
        f"  decoding {times.decoding_s:.2f}, embedding {times.embedding_s:.2f}, searching {times.searching_s:.2f}, "
        f"waiting {times.waiting_s:.2f}, other {times.other_s:.2f}"
    )
    return lines


def counted(count: int, what: str) -> str:
    """Return a number with its noun, in the plural but for one."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def own_note(own_excluded: Collection[str]) -> str:
    """Return a sentence that says which of the query's own volumes did not vote, and what is not known."""
    *others, last = [_RELATED[by] for by in own_excluded if by in _RELATED] or [""]
    related = f"{', '.join(others)} and {last}" if others else last
    scope = "left out: the query itself" + (f" and all that the archive knows of {related}" if related else "")
    if "patient" in own_excluded:
        return f"{scope}; --include-own lets them vote"
    return f"{scope}; other volumes of its patient may have voted"


def _readable(duration: str) -> str:
    """Return a duration as protobuf's JSON writes it ("90061.5s") in words, to the second."""
    return str(timedelta(seconds=round(float(duration.removesuffix("s")))))


def secret_differs() -> str:
    """Return what to do where the archive's patient keys were made with another secret."""
    return (
        "other volumes of the query's patient may have voted: the archive's patient keys were made with another secret "
        f"than the one in {default_secret_file()}. Use the file that the archive was filled with "
        "(SLICEVOTE_PATIENT_SECRET=FILE)"
    )


def outcome_lines(volumes: Iterable[Volume]) -> Callable[[IngestOutcome], str | None]:
    """Return a function that describes the outcome of one of these volumes; None where it failed."""
    shown = _shown_ids((volume.id for volume in volumes), on_terminal=sys.stderr.isatty())

    def line(outcome: IngestOutcome) -> str | None:
        volume_id = shown[outcome.volume.id]
        if outcome.was_there:
            return f"already there {volume_id}  {outcome.volume.source}"
        if outcome.result is None:
            return None
        record = outcome.result.volume
        blank = f", {record.blank_slice_count} blank" if record.blank_slice_count else ""
        return (
            f"{'replaced' if outcome.result.replaced else 'added'} {volume_id}  {record.modality or '-'}  "
            f"{record.indexed_slice_count} slices{blank}  {outcome.volume.source}"
        )

    return line


def volume_lines(volume: VolumeRecord, slices: Sequence[IndexedSlice]) -> list[str]:
    """Return a description of one volume, line by line."""
    positions = volume.slice_positions_mm
    return [
        f"volume      {volume.volume_id}",
        f"modality    {volume.modality or '-'}",
        f"labels      {label_text(volume.labels) or '-'}",
        f"source      {volume.source or '-'}",
        f"study       {volume.study_instance_uid or '-'}",
        f"series      {volume.series_instance_uid or '-'}",
        f"patient key {volume.patient_key or '-'}",
        f"slices      {volume.slice_count}, of which {len(slices)} are indexed and {volume.blank_slice_count} blank",
        f"positions   {positions[0]:.1f} to {positions[-1]:.1f} mm",
        f"ingested    {volume.ingested_at.isoformat(timespec='seconds')}",
    ]


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a description of a server, line by line."""
    lines = [
        f"slicevote {document['server_version']} on {document['listening_on']}, up {_readable(document['uptime'])}"
    ]
    for archive in document["archives"]:
        backbone, numerics = archive["backbone"], archive["numerics"]
        lines += [
            f"{backbone['name']}: {archive['volume_count']} volumes, {archive['slice_count']} slices "
            f"({archive['unindexed_slice_count']} searched without the graph), {archive['disk_bytes'] / 1e6:.1f} MB, "
            f"{archive['engine']}",
            f"  {backbone['family']}, {backbone['dimension']} dimensions, {numerics['precision']} on "
            f"{numerics['provider']} ({numerics['runtime']}), weights {backbone['weights_sha256'][:12]} "
            f"({backbone['licence']})",
        ]
        made = archive["archive_numerics"]
        if made is not None and made != numerics:
            lines.append(f"  the archive was made in {made['precision']} on {made['provider']} ({made['runtime']})")
        if archive["engine_restart_count"]:
            lines.append(f"  the archive's engine has restarted {archive['engine_restart_count']} times")
    return lines


def label_text(labels: Mapping[str, str]) -> str:
    """Return labels in one line, the modality first."""
    return ", ".join(f"{key}={value}" for key, value in _ordered(labels).items())


def _ordered(labels: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(labels.items(), key=lambda label: (label[0] != "modality", label[0])))


def _shown_ids(ids: Iterable[str], *, on_terminal: bool | None = None) -> dict[str, str]:
    """Return how IDs are shown: shortened on a terminal, complete elsewhere."""
    listed = list(ids)
    on_terminal = sys.stdout.isatty() if on_terminal is None else on_terminal
    return short_ids(listed) if on_terminal else {volume_id: volume_id for volume_id in listed}


def _table(*columns: str) -> Table:
    """Return a table of columns by title; ">" at the end means flush right. Labels and sources give way to others."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in columns:
        gives_way = title in ("labels", "source")
        table.add_column(title.rstrip(">"), justify="right" if title.endswith(">") else "left", no_wrap=not gives_way)
    return table


def _add_row(table: Table, cells: Iterable[str], volume: VolumeRecord) -> None:
    """Add a row that ends with the volume's labels, on a terminal their values only, and source."""
    text = ", ".join(_ordered(volume.labels).values()) if sys.stdout.isatty() else label_text(volume.labels)
    labels = Text(printable(text or "-"), no_wrap=True, overflow="ellipsis")
    table.add_row(*map(printable, cells), labels, Middle(printable(volume.source or "-")))
