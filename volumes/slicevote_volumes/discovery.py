"""Discovery of volumes in files and folders, and in given DICOM instances (see `dicom.instance_sources`)."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slicevote_volumes.dicom.header import read_frames
from slicevote_volumes.dicom.image import Frame
from slicevote_volumes.dicom.instance_sources import Instance
from slicevote_volumes.dicom.series import assemble
from slicevote_volumes.errors import NotAScan, Problem, VolumeError, os_reason
from slicevote_volumes.modality import check_modality
from slicevote_volumes.nifti import is_nifti_name, read_nifti
from slicevote_volumes.volume import Volume

NO_MODALITY = (
    "has no modality: a CT is then not windowed in Hounsfield units, gets other grey values and is not found by "
    "modality=CT; say --modality"
)


@dataclass(frozen=True)
class Discovery:
    """Volumes that were found, and what else was met.

    Attributes:
        volumes: In the order in which their first files were met.
        problems: Files, or series by one of their files, that cannot be used.
        skipped: Number of files that are neither scans nor damaged ones.
    """

    volumes: list[Volume] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: int = 0

    @property
    def warnings(self) -> list[Problem]:
        """What deserves attention although it can be used: one entry for every file whose modality is unknown."""
        paths = dict.fromkeys(
            volume.paths[0] if volume.paths else None for volume in self.volumes if not volume.modality
        )
        return [Problem(path, NO_MODALITY) for path in paths]


def discover(
    paths: Iterable[str | os.PathLike[str]], *, modality: str = "", on_file: Callable[[Path], None] | None = None
) -> Discovery:
    """Find the volumes in files and folders, searched to any depth.

    Of DICOM files the headers are read. NIfTI files are read whole, once, for their ids; their pixels are not kept.

    Args:
        paths: Files and folders.
        modality: DICOM modality code that overrides what the files say; NIfTI files do not say it.
        on_file: Called with every file before it is read.

    Returns:
        The volumes, and what cannot be used. A file that cannot be read is a problem and not an exception.

    Raises:
        TypeError: `paths` is a single path.
        ValueError: DICOM defines no such modality.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError("discover() takes several paths; put a single one into a list")
    modality = check_modality(modality)
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
                frames += read_frames(Instance.from_path(path))
        except NotAScan:
            skipped += 1
        except VolumeError as error:
            problems.append(Problem(error.path or path, error.reason))
    dicom, unusable = assemble(frames, modality)
    found = sorted([*volumes, *dicom], key=lambda volume: min(order[path] for path in volume.paths))
    return Discovery(found, problems + unusable, skipped)


def discover_instances(instances: Iterable[Instance], *, modality: str = "") -> Discovery:
    """Find the volumes in DICOM instances, wherever they are stored.

    Headers are read at once, in the order given; pixels are decoded on demand, for which an instance is opened again.

    Args:
        instances: The instances, of any number of series.
        modality: DICOM modality code that overrides what the instances say.

    Returns:
        The volumes, and what cannot be used.

    Raises:
        ValueError: DICOM defines no such modality.
    """
    modality = check_modality(modality)
    frames: list[Frame] = []
    problems: list[Problem] = []
    skipped = 0
    for instance in instances:
        try:
            frames += read_frames(instance)
        except NotAScan:
            skipped += 1
        except VolumeError as error:
            problems.append(Problem.from_error(error))
    volumes, unusable = assemble(frames, modality)
    return Discovery(volumes, problems + unusable, skipped)


def read_volumes(path: str | os.PathLike[str], *, modality: str = "") -> list[Volume]:
    """Read the volumes of one file or folder; pixels are decoded on demand.

    Args:
        path: The file or folder.
        modality: DICOM modality code that overrides what the files say; NIfTI files do not say it.

    Raises:
        VolumeError: It holds no volume; says why.
        ValueError: DICOM defines no such modality.
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
    """Return False for a DICOMDIR, the files macOS puts beside real ones, and the .hdr of a pair that has an .img."""
    name = path.name
    if name.upper() == "DICOMDIR" or name.startswith("._") or not path.is_file():
        return False
    lower = name.lower()
    if lower.endswith((".hdr", ".hdr.gz")):
        stem = name[: lower.rindex(".hdr")]
        return not any((path.parent / (stem + suffix)).exists() for suffix in (".img", ".img.gz", ".IMG"))
    return True
