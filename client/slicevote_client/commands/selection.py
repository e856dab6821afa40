"""Volumes of the archive as a user names them: by the first characters of an ID, or by labels."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from slicevote_client.client import Client
from slicevote_client.commands.failures import CommandError, did_you_mean

SHOWN_CHARACTERS = 8
"""Least length of a shortened ID."""

LEAST_CHARACTERS = 4
"""Least length of what is taken as the beginning of an ID."""

_LISTED = 10


def short_ids(ids: Collection[str]) -> dict[str, str]:
    """Return, for every ID, the shortest beginning of at least 8 characters that no other of the IDs has."""
    ordered = sorted(set(ids))
    short = {}
    for place, volume_id in enumerate(ordered):
        neighbours = ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2]
        shared = max((_common_length(volume_id, other) for other in neighbours), default=0)
        short[volume_id] = volume_id[: max(SHOWN_CHARACTERS, shared + 1)]
    return short


def resolve_id(client: Client, text: str, *, backbone: str = "") -> str:
    """Return the ID of the one volume whose ID is this text, or begins with it.

    Raises:
        CommandError: There is none, or there are several.
    """
    found = [
        record.volume_id for record in itertools.islice(client.volumes(id_prefix=text, backbone=backbone), _LISTED)
    ]
    if text in found:
        return text
    if len(text) < LEAST_CHARACTERS:
        raise CommandError(f"'{text}' is too short; give at least {LEAST_CHARACTERS} characters of the volume's ID")
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandError(f"the archive has no volume '{text}'; 'slicevote volumes' lists those that there are")
    more = ", ..." if len(found) == _LISTED else ""
    raise CommandError(f"several volumes begin with '{text}': {', '.join(found)}{more}; give more characters")


def check_labels(client: Client, conditions: Mapping[str, Sequence[str]], *, backbone: str = "") -> None:
    """Check that some volume has each of these labels and values, so that a typing error is not an empty answer.

    Raises:
        CommandError: No volume has one of them; the message names those that there are.
    """
    if not conditions:
        return
    known = client.labels(backbone=backbone)
    for key, values in conditions.items():
        if key not in known:
            have = f"the labels are {', '.join(sorted(known))}" if known else "no volume has any label"
            raise CommandError(f"no volume in the archive has a label '{key}'{did_you_mean(key, known)} ({have})")
        for value in values:
            if value not in known[key]:
                listed = ", ".join(itertools.islice(known[key], _LISTED)) + (
                    ", ..." if len(known[key]) > _LISTED else ""
                )
                raise CommandError(
                    f"no volume in the archive has the label {key}={value}{did_you_mean(value, known[key])} "
                    f"(the values are {listed})"
                )


def _common_length(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
