"""Data sets to evaluate: folders in the layout of the Medical Segmentation Decathlon, and manifests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slicevote_server.errors import StartupError
from slicevote_volumes import Manifest, ManifestError, Problem, Row, load_manifest

from slicevote_evaluation.published import LEVELS, MODALITY, TASKS, Task

MANIFEST = "manifest.tsv"
DATABASE, QUERY = "database", "query"
SPLITS = {DATABASE: "imagesTr", QUERY: "imagesTs"}
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Case:
    """One case of the paper's tables: a file, or the folder of one DICOM series.

    It can hold several volumes, the protocols of a 4-D file.

    Attributes:
        name: Unique name; the ids of its volumes are derived from it.
        path: The file or folder.
        labels: Labels by level.
        is_database: It can be found.
        is_query: It is searched for.
        patient: Its patient, unique over all data sets. Not shown by repr().
        key: Hash of what its embeddings depend on: names, sizes and times of its files, and the modality.
    """

    name: str
    path: Path
    labels: Mapping[str, str]
    is_database: bool
    is_query: bool
    patient: str = field(repr=False)
    key: str = field(repr=False)


@dataclass(frozen=True)
class Dataset:
    """All cases that are evaluated together.

    Attributes:
        roots: The folders or manifests that were given.
        cases: All cases, by name.
        problems: What could not be used.
        levels: The levels that all of the data sets label.
        leave_one_patient_out: Every case is query and database, without its own patient.
        tasks: The tasks of the Decathlon that were found.
        has_manifest: At least one of the data sets is a manifest.
    """

    roots: tuple[Path, ...]
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    levels: tuple[str, ...]
    leave_one_patient_out: bool
    tasks: tuple[Task, ...]
    has_manifest: bool

    @property
    def is_papers(self) -> bool:
        """Whether it is the Decathlon alone, in its own split, so that the paper's values compare."""
        return bool(self.tasks) and not self.has_manifest and not self.leave_one_patient_out


@dataclass
class _Reading:
    """A data set while it is read."""

    leave_one_patient_out: bool
    wanted_tasks: frozenset[str]
    cases: dict[Path, Case] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    levels: set[str] = field(default_factory=lambda: set(LEVELS))
    tasks: list[Task] = field(default_factory=list)
    has_manifest: bool = False

    def problem(self, path: Path, reason: str) -> None:
        problem = Problem(path, reason)
        if problem not in self.problems:
            self.problems.append(problem)

    def add(self, name: str, path: Path, labels: Mapping[str, str], split: str, patient: str) -> None:
        if path.resolve() in self.cases:
            self.problem(path.resolve(), "appears more than once in the data sets; it is used once")
            return
        try:
            key = _content_key(path, labels[MODALITY])
        except OSError as error:
            self.problem(path, f"cannot be read ({error.strerror})")
            return
        both = self.leave_one_patient_out
        self.cases[path.resolve()] = Case(
            name, path, labels, both or split == DATABASE, both or split == QUERY, patient, key
        )


def read_datasets(
    roots: Sequence[Path], *, leave_one_patient_out: bool = False, tasks: Collection[str] = ()
) -> Dataset:
    """Read which cases the data sets have. No scan is opened.

    Args:
        roots: Each a manifest or a folder that holds `manifest.tsv`, a folder of tasks, or the folder of one task.
        leave_one_patient_out: Make every case query and database, whatever the split.
        tasks: Names or numbers of the Decathlon tasks to use; empty for all.

    Raises:
        StartupError: A root is not a data set, or the Decathlon has no such task.
    """
    reading = _Reading(leave_one_patient_out, frozenset(task.folder for task in map(_task_named, tasks)))
    for place, root in enumerate(roots):
        name = root.resolve().name if root.is_dir() else root.resolve().parent.name
        if name in {other.resolve().name for other in roots[:place]}:
            name = f"{name}-{place + 1}"
        _read_root(reading, root, name)
    return Dataset(
        roots=tuple(roots),
        cases=tuple(sorted(reading.cases.values(), key=lambda case: case.name)),
        problems=tuple(reading.problems),
        levels=tuple(level for level in LEVELS if level in reading.levels),
        leave_one_patient_out=leave_one_patient_out,
        tasks=tuple(reading.tasks),
        has_manifest=reading.has_manifest,
    )


def _read_root(reading: _Reading, root: Path, name: str) -> None:
    if root.is_file() or (root / MANIFEST).is_file():
        try:
            manifest = load_manifest(root if root.is_file() else root / MANIFEST)
        except ManifestError as error:
            raise StartupError(str(error)) from error
        _read_manifest(reading, manifest, name)
        return
    if _is_task_name(root.resolve().name):
        _read_task(reading, root, name)
        return
    folders = sorted(path for path in root.iterdir() if path.is_dir() and _is_task_name(path.name))
    if not folders:
        raise StartupError(
            f"{root} is not a data set: expected {MANIFEST}, a Decathlon task such as Task04_Hippocampus, or a folder "
            "of such tasks"
        )
    for folder in folders:
        _read_task(reading, folder, f"{name}/{folder.name}")


def _read_manifest(reading: _Reading, manifest: Manifest, name: str) -> None:
    reading.has_manifest = True
    labelled = {level for level in LEVELS if any(row.columns.get(level) for row in manifest.rows)}
    for level in sorted(set(LEVELS) - labelled):
        reading.problem(manifest.file, f"labels no {level}; that level is left out of the evaluation")
    reading.levels &= labelled
    if MODALITY not in labelled and manifest.rows:
        raise StartupError(f"{manifest.file}: no row has a modality; add a column 'modality' (CT, MR, ...)")
    for row in manifest.rows:
        path = manifest.path_of(row)
        missing = [level for level in LEVELS if level in labelled and not row.columns.get(level)]
        if not path.exists():
            reading.problem(path, "is in the manifest, but there is no such file or folder")
        elif missing:
            reading.problem(path, f"has no {' and no '.join(missing)} in the manifest; the row is left out")
        elif not reading.leave_one_patient_out and row.split not in SPLITS:
            reading.problem(path, "its split in the manifest is neither 'database' nor 'query'; the row is left out")
        else:
            patient = f"{name}:{row.patient}" if row.patient else f"{name}/{row.path}"
            reading.add(f"{name}/{row.path}", path, _labels(row), row.split, patient)


def _read_task(reading: _Reading, folder: Path, name: str) -> None:
    task = _task_of_folder(folder.resolve().name)
    if task is None:
        reading.problem(folder, "is not one of the ten tasks that the paper labels; it is left out")
        return
    if reading.wanted_tasks and task.folder not in reading.wanted_tasks:
        return
    reading.tasks.append(task)
    for split, images in SPLITS.items():
        # macOS leaves a ._file beside every file of the Decathlon's archives.
        paths = sorted(
            path for path in (folder / images).glob("*") if path.name.endswith(_NIFTI) and not path.name.startswith(".")
        )
        if not paths:
            what = "holds no NIfTI file" if (folder / images).is_dir() else "does not exist"
            reading.problem(folder / images, f"{what}: the task adds nothing to the {split}")
        for path in paths:
            case = f"{name}/{images}/{path.name}"
            reading.add(case, path, task.labels, split, case)


def _task_named(wanted: str) -> Task:
    """Return the task with this folder, name or number."""
    text = wanted.strip().casefold()
    for task in TASKS:
        folder = task.folder.casefold()
        number, _, name = folder.partition("_")
        if text in (folder, name, number, number.removeprefix("task"), number.removeprefix("task0")):
            return task
    raise StartupError(
        f"the Decathlon has no task '{wanted}'; its tasks are {', '.join(task.folder for task in TASKS)}"
    )


def _task_of_folder(folder_name: str) -> Task | None:
    _, _, name = folder_name.casefold().partition("_")
    return next((task for task in TASKS if task.folder.casefold().partition("_")[2] == name), None)


def _is_task_name(name: str) -> bool:
    number, _, title = name.partition("_")
    return number[:4] == "Task" and number[4:].isdigit() and bool(title)


def _labels(row: Row) -> dict[str, str]:
    """Return a row's labels in one spelling, so that data sets can be combined."""
    labels = {level: " ".join(row.columns.get(level, "").split()).lower() for level in LEVELS}
    return {**labels, MODALITY: row.modality}


def _content_key(path: Path, modality: str) -> str:
    """Return a hash that stands for a case's files without reading them.

    Raises:
        OSError: A file cannot be accessed.
    """
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    stats = [(str(entry.relative_to(path.parent)), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files]
    return hashlib.sha256(json.dumps([modality, str(path.resolve()), stats]).encode()).hexdigest()[:32]
