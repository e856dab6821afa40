"""Which points of a shard are meant: the engine's filters for kinds, labels, exclusions and scopes."""

from __future__ import annotations

from collections.abc import Sequence

import qdrant_edge as edge

from slicevote_server.archive import points
from slicevote_server.archive.interface import Scope


def field_is(key: str, value: str | int) -> edge.FieldCondition:
    """Those of which a field has this value."""
    return edge.FieldCondition(key=key, match=edge.MatchValue(value))


def kind_is(kind: str) -> edge.Filter:
    """Those of one kind: volumes, slices."""
    return edge.Filter(must=[field_is(points.KIND, kind)])


def of_labels(labels: Sequence[tuple[str, tuple[str, ...]]]) -> list[edge.FieldCondition]:
    """Those that have one of the values of every label."""
    return [
        edge.FieldCondition(key=points.TAGS, match=edge.MatchAny([points.tag(key, value) for value in values]))
        for key, values in labels
    ]


def of_exclusions(scope: Scope) -> list[edge.FieldCondition]:
    """Those that a scope excludes by their volume or patient."""
    pairs = ((points.VOLUME, scope.exclude_volume_ids), (points.PATIENT, scope.exclude_patient_keys))
    return [edge.FieldCondition(key=key, match=edge.MatchAny(sorted(values))) for key, values in pairs if values]


def of_scope(scope: Scope) -> edge.Filter | None:
    """Those inside a scope; None for all."""
    if not scope:
        return None
    return edge.Filter(must=list(of_labels(scope.labels)), must_not=list(of_exclusions(scope)))
