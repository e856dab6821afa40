"""Filters of Qdrant Edge for kinds of points, labels, exclusions and scopes."""

from __future__ import annotations

import qdrant_edge as edge

from slicevote_server.archive import points
from slicevote_server.archive.interface import LabelConditions, Scope


def field_is(key: str, value: str | int) -> edge.FieldCondition:
    """Return a condition on the value of a field."""
    return edge.FieldCondition(key=key, match=edge.MatchValue(value))


def kind_is(kind: str) -> edge.Filter:
    """Return a filter for points of one kind: volumes or slices."""
    return edge.Filter(must=[field_is(points.KIND, kind)])


def of_labels(labels: LabelConditions) -> list[edge.FieldCondition]:
    """Return conditions that demand one of the accepted values of every label."""
    return [
        edge.FieldCondition(key=points.TAGS, match=edge.MatchAny([points.tag(key, value) for value in values]))
        for key, values in labels
    ]


def of_exclusions(scope: Scope) -> list[edge.FieldCondition]:
    """Return conditions that hold for every point that a scope excludes by its volume, patient, study or series."""
    pairs = (
        (points.VOLUME, scope.exclude_volume_ids),
        (points.PATIENT, scope.exclude_patient_keys),
        (points.STUDY, scope.exclude_study_instance_uids),
        (points.SERIES, scope.exclude_series_instance_uids),
    )
    return [edge.FieldCondition(key=key, match=edge.MatchAny(sorted(values))) for key, values in pairs if values]


def of_scope(scope: Scope) -> edge.Filter | None:
    """Return a filter for the points inside a scope; None for all of them."""
    if not scope:
        return None
    return edge.Filter(must=list(of_labels(scope.labels)), must_not=list(of_exclusions(scope)))
