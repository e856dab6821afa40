"""Assembles DICOM frames, of any number of series and instances, into volumes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slicevote_volumes.dicom.image import DEFAULT_SPACING_MM, Frame, Image
from slicevote_volumes.dicom.instance_sources import Instance
from slicevote_volumes.dicom.slices import ReformattedSource, StackSource
from slicevote_volumes.dicom.split_attributes import WORDS, repeats, split_frames
from slicevote_volumes.errors import DamagedError, Problem, os_reason
from slicevote_volumes.geometry import (
    DEFAULT_ORIENTATION,
    Transversal,
    dicom_affine,
    plane_name,
    plane_normal,
    transversal,
)
from slicevote_volumes.identity import volume_id
from slicevote_volumes.volume import SliceSource, Volume

ORIENTATION_TOLERANCE = 1e-3  # difference of direction cosines up to which planes are parallel
MAX_LABEL_LENGTH = 256


@dataclass(frozen=True)
class _Part:
    """Frames that make one volume.

    Attributes:
        series: Identifies their series.
        frames: In the order of acquisition.
        split: What tells them apart from the rest of their series; becomes part of the volume's id.
        split_words: The same for people.
        labels: Labels that follow from the split.
    """

    series: str
    frames: list[Frame]
    split: dict[str, str]
    split_words: dict[str, str]
    labels: dict[str, str]


def assemble(frames: Iterable[Frame], modality: str = "") -> tuple[list[Volume], list[Problem]]:
    """Assemble frames into volumes.

    Frames are grouped by series, wherever their instances are stored; further copies of an image are dropped. A series
    is split by orientation (localizers) and, where positions repeat, by the first of the attributes that tells the
    frames apart.

    Args:
        frames: Frames of any number of instances.
        modality: Overrides the modality that the instances give.

    Returns:
        The volumes, in the order in which their first instances were met, and what cannot be used.
    """
    order: dict[Instance, int] = {}
    series: dict[str, dict[tuple[object, int], Frame]] = defaultdict(dict)
    for frame in frames:
        image = frame.image
        order.setdefault(image.instance, len(order))
        series[_series_key(image)].setdefault((image.sop_instance_uid or image.instance, frame.index), frame)
    volumes: list[tuple[int, Volume]] = []
    problems: list[Problem] = []
    for images in series.values():
        members = sorted(images.values(), key=_acquisition_order)
        try:
            name = members[0].image.series_instance_uid or _series_name(members)
        except OSError as error:
            problems.append(_problem(members[0], os_reason(error)))
            continue
        for oriented in _by_orientation(_Part(name, members, {}, {}, {})):
            parts, problem = _by_position(oriented)
            problems += [problem] if problem else []
            for part in parts:
                try:
                    met = min(order[frame.image.instance] for frame in part.frames)
                    volumes.append((met, _volume(part, modality)))
                except DamagedError as error:
                    problems.append(_problem(part.frames[0], str(error)))
    return [volume for _, volume in sorted(volumes, key=lambda pair: pair[0])], problems


def _series_key(image: Image) -> str:
    """Return what images must have in common to be of one series."""
    return image.series_instance_uid or f"{image.study_instance_uid} in {image.instance.folder}"


def _acquisition_order(frame: Frame) -> tuple[int, str, int]:
    image = frame.image
    return image.instance_number, image.sop_instance_uid or image.instance.name, frame.index


def _series_name(frames: Sequence[Frame]) -> str:
    """Name a series that has no UID after its images, so that the name does not depend on where they are stored.

    Raises:
        OSError: An instance cannot be read.
    """
    images = {frame.image for frame in frames}
    names = sorted(image.sop_instance_uid or image.instance.sha256() for image in images)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _by_orientation(part: _Part) -> list[_Part]:
    """Split frames by the orientation of their planes."""
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
    planes = [plane_name(orientation) for orientation, _ in groups]
    parts = []
    for (orientation, members), plane in zip(groups, planes, strict=True):
        cosines = ",".join(f"{round(cosine, 2) + 0.0:g}" for cosine in orientation)
        words = plane if planes.count(plane) == 1 else f"{plane} ({cosines})"
        parts.append(replace(part, frames=members, split={"orientation": cosines}, split_words={"orientation": words}))
    return parts


def _by_position(part: _Part) -> tuple[list[_Part], Problem | None]:
    """Split frames where positions repeat."""
    sizes = Counter(_size(frame) for frame in part.frames)
    if len(sizes) > 1:
        (usual, _), (odd, _) = sizes.most_common(2)
        culprit = next(frame for frame in part.frames if _size(frame) == odd)
        sentence = "has {} x {} pixels, others of its series have {} x {}; they do not make one volume"
        return [], _problem(culprit, sentence.format(*odd, *usual))
    try:
        places = _places(part.frames)
    except DamagedError as error:
        return [], _problem(part.frames[0], str(error))
    if places is None or not repeats(places):
        return [part], None
    groups = split_frames(part.frames, places)
    if groups is None:
        sentence = "positions repeat in its series of {} slices, and nothing tells them apart"
        return [], _problem(part.frames[0], sentence.format(len(places)))
    return [
        replace(
            part,
            frames=frames,
            split={**part.split, **values},
            split_words={**part.split_words, **_words(values)},
            labels=_labels(values),
        )
        for values, frames in groups
    ], None


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.layout.rows, frame.image.layout.columns


def _labels(values: dict[str, str]) -> dict[str, str]:
    return {label: value[:MAX_LABEL_LENGTH] for label, value in values.items() if value}


def _words(values: dict[str, str]) -> dict[str, str]:
    return {WORDS[label]: value[:MAX_LABEL_LENGTH] or "none" for label, value in values.items()}


def _places(frames: Sequence[Frame]) -> list[float] | None:
    """Return the place of every frame along the planes' normal in mm; None if a frame has no position."""
    normal = plane_normal(frames[0].orientation or DEFAULT_ORIENTATION)
    if any(frame.position is None for frame in frames):
        return None
    return [float(np.dot(frame.position, normal)) for frame in frames if frame.position is not None]


def _volume(part: _Part, modality: str) -> Volume:
    frames, geometry = _stacked(part.frames)
    geometry.check_extent()
    image = frames[0].image
    if geometry.stack_axis == 0:
        order = [frames[geometry.plane_index(index)] for index in range(len(frames))]
        source: SliceSource = StackSource(tuple(order), geometry)
    else:
        source = ReformattedSource(tuple(frames), geometry)
    modality = modality or image.modality
    instances = dict.fromkeys(frame.image.instance for frame in frames)
    return Volume(
        id=volume_id("dicom", part.series, part.split),
        positions_mm=geometry.positions_mm,
        shape=geometry.shape[1:],
        slice_source=source,
        source=_common_source(list(instances)),
        paths=tuple(instance.path for instance in instances if instance.path),
        modality=modality,
        labels={**_labels({"modality": modality, "body_part": image.body_part}), **part.labels},
        patient_id=image.patient_id,
        study_instance_uid=image.study_instance_uid,
        series_instance_uid=image.series_instance_uid,
        pixel_spacing_mm=geometry.pixel_spacing_mm(_known_spacing(frames)),
        split=part.split_words,
        series_number=image.series_number,
    )


def _known_spacing(frames: Sequence[Frame]) -> tuple[bool, bool, bool]:
    """Return whether the distances between planes, rows and columns are known."""
    first = frames[0]
    have_places = all(frame.position for frame in frames) and len({frame.image for frame in frames}) == len(frames) > 1
    between_pixels = first.pixel_spacing is not None
    return first.plane_spacing is not None or have_places, between_pixels, between_pixels


def _stacked(frames: Sequence[Frame]) -> tuple[list[Frame], Transversal]:
    """Order frames along their normal and find their nearest axial orientation."""
    first = frames[0]
    orientation = first.orientation or DEFAULT_ORIENTATION
    normal = plane_normal(orientation)
    plane_spacing = first.plane_spacing or DEFAULT_SPACING_MM
    places = _places(frames)
    if places is None:  # in the order of InstanceNumber, at the distances that the header gives
        ordered = list(frames)
        origins = np.arange(len(frames))[:, np.newaxis] * plane_spacing * normal
    else:
        ordered = [frames[index] for index in np.argsort(places, kind="stable")]
        origins = np.array([frame.position for frame in ordered])
    step = (origins[-1] - origins[0]) / (len(ordered) - 1) if len(ordered) > 1 else normal * plane_spacing
    pixel_spacing = first.pixel_spacing or (DEFAULT_SPACING_MM, DEFAULT_SPACING_MM)
    affine = dicom_affine(orientation, pixel_spacing, origins[0], step)
    return ordered, transversal(affine, (len(ordered), *_size(first)), origins)


def _common_source(instances: Sequence[Instance]) -> str:
    """Return where instances come from: the name of a single one, else the folder that holds them all."""
    if len(instances) == 1:
        return instances[0].name
    if all(instance.path for instance in instances):
        return str(Path(os.path.commonpath([instance.folder for instance in instances])))
    return os.path.commonprefix([instance.name for instance in instances]).rpartition("/")[0]


def _problem(frame: Frame, reason: str) -> Problem:
    return Problem.from_error(frame.image.instance.error(reason))
