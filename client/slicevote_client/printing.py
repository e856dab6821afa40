"""Answers for people: tables on a terminal and plain lines elsewhere; and for programs: JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from slicevote_client.bulk import IngestOutcome
from slicevote_client.results import IndexedSlice, Ranking, VolumeRecord
from slicevote_client.terminal import printable


def print_json(document: object) -> None:
    """Prints one JSON document."""
    sys.stdout.write(json.dumps(plain(document), indent=2) + "\n")


def plain(value: object) -> Any:
    """Gives results as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def ranking_table(ranking: Ranking, title: str) -> Table:
    """Gives a ranking as a table."""
    table = Table(title=printable(title), title_justify="left", box=None, pad_edge=False)
    for name, justify in (
        ("rank", "right"), ("votes", "right"), ("share", "right"), ("similarity", "right"), ("volume", "left"),
        ("modality", "left"), ("labels", "left"), ("source", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name == "volume")  # type: ignore[arg-type]
    reranked = any(match.late_interaction_score is not None for match in ranking.matches)
    if reranked:
        table.add_column("late interaction", justify="right")
        table.add_column("slab")
    for rank, match in enumerate(ranking.matches, 1):
        row = [
            str(rank),
            f"{match.votes:.3g}" if match.votes != int(match.votes) else str(int(match.votes)),
            f"{match.share:.0%}",
            f"{match.similarity_mean:.3f}",
            match.volume.volume_id,
            match.volume.modality or "-",
            label_text(match.volume.labels),
            match.volume.source or "-",
        ]
        if reranked:
            row.append("-" if match.late_interaction_score is None else f"{match.late_interaction_score:.2f}")
            row.append("-" if match.matched_slab is None else "{}..{}".format(*match.matched_slab))
        table.add_row(*map(printable, row))
    return table


def side_by_side(rankings: Sequence[Ranking]) -> Table:
    """Gives the rankings of several indexes beside each other: votes and volume by rank, and the times below."""
    table = Table(title="side by side", title_justify="left", box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    for ranking in rankings:
        table.add_column(f"{ranking.index}: votes, volume", no_wrap=True)
    for rank in range(max(len(ranking.matches) for ranking in rankings)):
        cells = [
            f"{ranking.matches[rank].votes:5.4g}  {ranking.matches[rank].volume.volume_id}"
            if rank < len(ranking.matches)
            else "-"
            for ranking in rankings
        ]
        table.add_row(str(rank + 1), *map(printable, cells))
    times = [f"{ranking.times.total_s:.2f} s, lookups {ranking.times.searching_s:.3f} s" for ranking in rankings]
    table.add_row("time", *times)
    return table


def ranking_notes(ranking: Ranking) -> list[str]:
    """Says what stands behind a ranking, line by line."""
    lines = [
        f"{ranking.voting_slice_count} of {ranking.planned_slice_count} planned slices voted"
        + (f", {ranking.blank_slice_count} were blank" if ranking.blank_slice_count else "")
        + (f"; decided after {ranking.received_slice_count}" if ranking.decided_early else "")
        + f"; {ranking.voted_volume_count} volumes got votes"
    ]
    for key, shares in ranking.label_votes.items():
        shown = ", ".join(f"{share.value or '(none)'} {share.share:.0%}" for share in shares[:5])
        lines.append(f"votes by {key}: {shown}" + (" ..." if len(shares) > 5 else ""))
    times = ranking.times
    lines.append(
        f"{times.total_s:.2f} s with {ranking.backbone} and {ranking.index}"
        + (" (exact, because of the filter)" if ranking.exact_because_filtered else "")
        + f": decoding {times.decoding_s:.2f}, embedding {times.embedding_s:.2f}, searching {times.searching_s:.2f}, "
        f"waiting {times.waiting_s:.2f}"
    )
    return lines


def outcome_line(outcome: IngestOutcome) -> str | None:
    """Says what became of an ingested volume; nothing where it failed, which is said elsewhere."""
    if outcome.was_there:
        return f"already there {outcome.volume.id}  {outcome.volume.source}"
    if outcome.result is None:
        return None
    record = outcome.result.volume
    blank = f", {record.blank_slice_count} blank" if record.blank_slice_count else ""
    return (
        f"{'replaced' if outcome.result.replaced else 'added'} {record.volume_id}  {record.modality or '-'}  "
        f"{record.indexed_slice_count} slices{blank}  {outcome.volume.source}"
    )


def volume_table(volumes: Sequence[VolumeRecord]) -> Table:
    """Gives volumes as a table."""
    table = Table(box=None, pad_edge=False)
    for name in ("volume", "modality", "slices", "blank", "labels", "source"):
        table.add_column(name, justify="right" if name in ("slices", "blank") else "left", no_wrap=name == "volume")
    for volume in volumes:
        table.add_row(
            *map(
                printable,
                (
                    volume.volume_id,
                    volume.modality or "-",
                    volume.indexed_slice_count,
                    volume.blank_slice_count,
                    label_text(volume.labels),
                    volume.source or "-",
                ),
            )
        )
    return table


def volume_lines(volume: VolumeRecord, slices: Sequence[IndexedSlice]) -> list[str]:
    """Describes one volume, line by line."""
    positions = volume.slice_positions_mm
    return [
        f"volume      {volume.volume_id}",
        f"modality    {volume.modality or '-'}",
        f"labels      {label_text(volume.labels) or '-'}",
        f"source      {volume.source or '-'}",
        f"series      {volume.series_instance_uid or '-'}",
        f"patient key {volume.patient_key or '-'}",
        f"slices      {volume.slice_count}, of which {len(slices)} are indexed and {volume.blank_slice_count} blank",
        f"positions   {positions[0]:.1f} to {positions[-1]:.1f} mm",
        f"ingested    {volume.ingested_at.isoformat(timespec='seconds')}",
    ]


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """Describes a server, line by line."""
    lines = [f"slicevote {document['server_version']} on {document['listening_on']}, up {document['uptime']}"]
    for archive in document["archives"]:
        backbone, numerics = archive["backbone"], archive["numerics"]
        lines += [
            f"{backbone['name']}: {archive['volume_count']} volumes, {archive['slice_count']} slices "
            f"({archive['unindexed_slice_count']} not in the graph yet), {archive['disk_bytes'] / 1e6:.1f} MB, "
            f"{archive['engine']}",
            f"  {backbone['family']}, {backbone['dimension']} dimensions, {numerics['precision']} on "
            f"{numerics['provider']} ({numerics['runtime']}), weights {backbone['weights_sha256'][:12]} "
            f"({backbone['licence']})",
        ]
        made = archive["archive_numerics"]
        if made is not None and made != numerics:
            lines.append(f"  the archive was made in {made['precision']} on {made['provider']} ({made['runtime']})")
        if archive["engine_restart_count"]:
            lines.append(f"  the archive's engine has been restarted {archive['engine_restart_count']} times")
    return lines


def label_text(labels: Mapping[str, str]) -> str:
    """Gives labels in one line; the modality has a column of its own."""
    return ", ".join(f"{key}={value}" for key, value in labels.items() if key != "modality")
