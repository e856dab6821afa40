"""Finds the volumes in files and folders."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slicevote_volumes.dicom_header import read_frames
from slicevote_volumes.dicom_image import Frame
from slicevote_volumes.dicom_series import assemble
from slicevote_volumes.model import Problem, Volume, VolumeError
from slicevote_volumes.nifti import is_nifti_name, read_nifti
from slicevote_volumes.quiet import NotAScan, os_reason


@dataclass(frozen=True)
class Discovery:
    """What was found.

    Attributes:
        volumes: In the order in which their first files were met.
        problems: Files, or series by one of their files, that could not be used.
        skipped: How many files are neither scans nor damaged ones.
    """

    volumes: list[Volume] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: int = 0


def discover(
    paths: Iterable[str | os.PathLike[str]], *, modality: str = "", on_file: Callable[[Path], None] | None = None
) -> Discovery:
    """Finds the volumes in files and folders, searched to any depth.

    Of DICOM files the headers are read. NIfTI files are read whole, once, for their names; their pixels are not kept.

    Args:
        paths: Files and folders.
        modality: DICOM modality code that overrides what the files say; NIfTI says nothing.
        on_file: Called with every file before it is looked at.

    Returns:
        The volumes, and what could not be used. Does not fail because of a file.

    Raises:
        TypeError: A single path was given.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError("discover() takes several paths; put a single one into a list")
    frames: list[Frame] = []
    volumes: list[Volume] = []
    problems: list[Problem] = []
    order: dict[Path, int] = {}
    skipped = 0
    for path in _files(map(Path, paths), problems):
        if path in order:
            continue
        order[path] = len(order)
        if on_file is not None:
            on_file(path)
        try:
            if not _is_candidate(path):
                skipped += 1
            elif is_nifti_name(path):
                volumes += read_nifti(path, modality)
            else:
                frames += read_frames(path)
        except NotAScan:
            skipped += 1
        except VolumeError as error:
            problems.append(Problem(error.path or path, error.reason))
    dicom, unusable = assemble(frames, modality)
    found = sorted([*volumes, *dicom], key=lambda volume: min(order[path] for path in volume.paths))
    return Discovery(found, problems + unusable, skipped)


def read_volumes(path: str | os.PathLike[str], *, modality: str = "") -> list[Volume]:
    """Reads the volumes of one file or folder; pixels are decoded when they are asked for.

    Raises:
        VolumeError: There is none; says why.
    """
    path = Path(path)
    discovery = discover([path], modality=modality)
    if discovery.volumes:
        return discovery.volumes
    if discovery.problems:
        first, more = discovery.problems[0], len(discovery.problems) - 1
        raise VolumeError(first.path, first.reason + (f" (and {more} more files with problems)" if more else ""))
    raise VolumeError(path, f"holds no scan: {discovery.skipped} files, none of them a DICOM image or NIfTI")


def _files(paths: Iterable[Path], problems: list[Problem]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            for folder, folders, names in os.walk(path, onerror=lambda error: problems.append(_unreadable(error))):
                folders.sort()
                yield from (Path(folder) / name for name in sorted(names))
        else:
            problems.append(Problem(path, "does not exist" if not path.exists() else "is neither a file nor a folder"))


def _unreadable(error: OSError) -> Problem:
    return Problem(Path(str(error.filename)), os_reason(error))


def _is_candidate(path: Path) -> bool:
    """Leaves out a DICOMDIR, what macOS puts beside real files, and the .hdr of a pair, which its .img stands for."""
    name = path.name
    if name.upper() == "DICOMDIR" or name.startswith("._") or not path.is_file():
        return False
    lower = name.lower()
    if lower.endswith((".hdr", ".hdr.gz")):
        stem = name[: lower.rindex(".hdr")]
        return not any((path.parent / (stem + suffix)).exists() for suffix in (".img", ".img.gz", ".IMG"))
    return True
