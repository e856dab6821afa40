"""DICOM frames, however many series and files they come from, put together to volumes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slicevote_volumes.dicom_image import Frame
from slicevote_volumes.dicom_source import ReformattedSource, StackSource
from slicevote_volumes.dicom_traits import TRAITS
from slicevote_volumes.geometry import (
    DEFAULT_ORIENTATION,
    GeometryError,
    Transversal,
    dicom_affine,
    plane_normal,
    transversal,
)
from slicevote_volumes.identity import sha256_of, volume_id
from slicevote_volumes.model import Problem, SliceSource, Volume

ORIENTATION_TOLERANCE = 1e-3  # difference of direction cosines up to which planes are parallel
POSITION_TOLERANCE_MM = 1e-3  # distance up to which planes are at one place


@dataclass(frozen=True)
class _Part:
    """Frames that make one volume, and what tells them apart from the rest of their series."""

    series: str
    frames: list[Frame]
    split: dict[str, str]  # becomes part of the id
    labels: dict[str, str]


def assemble(frames: Iterable[Frame], modality: str = "") -> tuple[list[Volume], list[Problem]]:
    """Puts frames together to volumes.

    Frames are grouped by series, wherever their files lie; further copies of an image are dropped. A series is split
    by orientation (localizers) and, where positions repeat, by the first of the traits that tells them apart.

    Args:
        frames: Of any number of files.
        modality: Overrides the modality that the files give.

    Returns:
        The volumes, in the order in which their series first appear, and what could not be used.
    """
    series: dict[str, dict[tuple[str, int], Frame]] = defaultdict(dict)
    for frame in frames:
        file = frame.file
        key = file.series_instance_uid or f"{file.study_instance_uid} in {file.path.parent if file.path else ''}"
        series[key].setdefault((file.sop_instance_uid or str(file.path), frame.index), frame)
    volumes: list[Volume] = []
    problems: list[Problem] = []
    for images in series.values():
        members = sorted(images.values(), key=_acquisition_order)
        name = members[0].file.series_instance_uid or _series_name(members)
        for oriented in _by_orientation(_Part(name, members, {}, {})):
            parts, problem = _by_position(oriented)
            problems += [problem] if problem else []
            for part in parts:
                try:
                    volumes.append(_volume(part, modality))
                except GeometryError as error:
                    problems.append(_problem(part.frames[0], str(error)))
    return volumes, problems


def _acquisition_order(frame: Frame) -> tuple[int, str, int]:
    return frame.file.instance_number, frame.file.sop_instance_uid or str(frame.file.path), frame.index


def _series_name(frames: Sequence[Frame]) -> str:
    """Names a series that has no UID after its images, so that the name does not depend on where they lie."""
    files = {frame.file for frame in frames}
    names = sorted(file.sop_instance_uid or sha256_of((file.path,) if file.path else ()) for file in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _by_orientation(part: _Part) -> list[_Part]:
    groups: list[tuple[tuple[float, ...], list[Frame]]] = []
    for frame in part.frames:
        orientation = frame.orientation or DEFAULT_ORIENTATION
        for known, members in groups:
            if max(abs(a - b) for a, b in zip(known, orientation, strict=True)) <= ORIENTATION_TOLERANCE:
                members.append(frame)
                break
        else:
            groups.append((orientation, [frame]))
    if len(groups) == 1:
        return [part]
    return [
        replace(
            part, frames=members, split={"orientation": ",".join(f"{round(cosine, 2) + 0.0:g}" for cosine in known)}
        )
        for known, members in groups
    ]


def _by_position(part: _Part) -> tuple[list[_Part], Problem | None]:
    """Splits what lies at one position more than once, by what tells it apart."""
    sizes = Counter((frame.file.layout.rows, frame.file.layout.columns) for frame in part.frames)
    if len(sizes) > 1:
        (usual, _), (odd, _) = sizes.most_common(2)
        culprit = next(frame for frame in part.frames if (frame.file.layout.rows, frame.file.layout.columns) == odd)
        sentence = "has {} x {} pixels, others of its series have {} x {}; they do not make one volume"
        return [], _problem(culprit, sentence.format(*odd, *usual))
    try:
        places = _places(part.frames)
    except GeometryError as error:
        return [], _problem(part.frames[0], str(error))
    if places is None or not _repeats(places):
        return [part], None

    place_of = {id(frame): place for frame, place in zip(part.frames, places, strict=True)}
    deepest = max(Counter(round(place / (10 * POSITION_TOLERANCE_MM)) for place in places).values())
    varying = [trait for trait in TRAITS if len({frame.traits.get(trait, "") for frame in part.frames}) > 1]
    # One trait, else the first two, three, ... together: echoes of several b-values.
    for traits in [[trait] for trait in varying] + [varying[:count] for count in range(2, len(varying) + 1)]:
        groups: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
        for frame in part.frames:
            groups[tuple(frame.traits.get(trait, "") for trait in traits)].append(frame)
        # A trait that changes from slice to slice tells everything apart and means nothing.
        if len(groups) > 2 * deepest or any(
            _repeats([place_of[id(one)] for one in group]) for group in groups.values()
        ):
            continue
        return [
            replace(
                part,
                frames=group,
                split={**part.split, **dict(zip(traits, values, strict=True))},
                labels={trait: value[:256] for trait, value in zip(traits, values, strict=True) if value},
            )
            for values, group in groups.items()
        ], None
    return [], _problem(
        part.frames[0], f"positions repeat in its series of {len(places)} slices, and nothing tells them apart"
    )


def _places(frames: Sequence[Frame]) -> list[float] | None:
    """Gives the place of every frame along the planes' normal in mm; None where some do not say."""
    normal = plane_normal(frames[0].orientation or DEFAULT_ORIENTATION)
    if any(frame.position is None for frame in frames):
        return None
    return [float(np.dot(frame.position, normal)) for frame in frames if frame.position is not None]


def _repeats(places: Sequence[float]) -> bool:
    ordered = np.sort(places)
    return bool((np.diff(ordered) <= POSITION_TOLERANCE_MM).any())


def _volume(part: _Part, modality: str) -> Volume:
    frames, geometry = _stacked(part.frames)
    geometry.check_extent()
    file = frames[0].file
    if geometry.stack_axis == 0:
        order = [frames[geometry.plane_index(index)] for index in range(len(frames))]
        source: SliceSource = StackSource(tuple(order), geometry)
    else:
        source = ReformattedSource(tuple(frames), geometry)
    modality = modality or file.modality
    labels = {key: value[:256] for key, value in (("modality", modality), ("body_part", file.body_part)) if value}
    paths = tuple(dict.fromkeys(frame.file.path for frame in frames if frame.file.path))
    return Volume(
        id=volume_id("dicom", part.series, part.split),
        positions_mm=geometry.positions_mm,
        shape=geometry.shape[1:],
        slice_source=source,
        source=str(_folder(paths)),
        paths=paths,
        modality=modality,
        labels={**labels, **part.labels},
        patient_id=file.patient_id,
        study_instance_uid=file.study_instance_uid,
        series_instance_uid=file.series_instance_uid,
    )


def _stacked(frames: Sequence[Frame]) -> tuple[list[Frame], Transversal]:
    """Orders frames along their normal and finds their nearest axial orientation."""
    first = frames[0]
    orientation = first.orientation or DEFAULT_ORIENTATION
    normal = plane_normal(orientation)
    places = _places(frames)
    if places is None:  # in the order of InstanceNumber, at the distances that the header knows
        ordered = list(frames)
        origins = np.arange(len(frames))[:, np.newaxis] * first.plane_spacing * normal
    else:
        ordered = [frames[index] for index in np.argsort(places, kind="stable")]
        origins = np.array([frame.position for frame in ordered])
    step = (origins[-1] - origins[0]) / (len(ordered) - 1) if len(ordered) > 1 else normal * first.plane_spacing
    affine = dicom_affine(orientation, first.pixel_spacing, origins[0], step)
    layout = first.file.layout
    return ordered, transversal(affine, (len(ordered), layout.rows, layout.columns), origins)


def _folder(paths: Sequence[Path]) -> Path:
    if len(paths) == 1:
        return paths[0]
    return Path(os.path.commonpath([path.parent for path in paths]))


def _problem(frame: Frame, reason: str) -> Problem:
    assert frame.file.path is not None
    return Problem(frame.file.path, reason)
