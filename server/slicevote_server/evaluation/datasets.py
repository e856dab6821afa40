"""What is evaluated: folders in the layout of the Medical Segmentation Decathlon, and manifests.

A *source* is one file or one folder of a DICOM series: one case of the paper's tables. It may hold several volumes,
the protocols of a 4-D file.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slicevote_volumes import Manifest, ManifestError, Problem, Row, load_manifest

from slicevote_server.errors import StartupError
from slicevote_server.evaluation.published import BODY_REGION, LEVELS, MODALITY, ORGAN, TASKS, Task

MANIFEST = "manifest.tsv"
DATABASE, QUERY = "database", "query"
SPLITS = {DATABASE: "imagesTr", QUERY: "imagesTs"}
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Source:
    """One case.

    Attributes:
        name: Unique; the archive's names of its volumes are made of it.
        path: The file or folder.
        labels: By level.
        is_database: It can be found.
        is_query: It is looked for.
        patient: Whose it is, unique over all data sets. Not shown.
        key: Stands for its content and for how it is read: names, sizes and times of its files, and the modality.
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
    """Everything that is evaluated together.

    Attributes:
        roots: The folders or manifests given.
        sources: In order of their names.
        problems: What could not be used.
        levels: The levels that every one of the data sets labels.
        leave_one_patient_out: Every source is query and database, its own patient left out.
        tasks: The tasks of the Decathlon that are there.
        has_manifest: A manifest is among the data sets.
    """

    roots: tuple[Path, ...]
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...]
    levels: tuple[str, ...]
    leave_one_patient_out: bool
    tasks: tuple[Task, ...]
    has_manifest: bool


@dataclass
class _Reading:
    """A data set while it is put together."""

    leave_one_patient_out: bool
    wanted_tasks: frozenset[str]
    sources: list[Source] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    levels: set[str] = field(default_factory=lambda: set(LEVELS))
    tasks: list[Task] = field(default_factory=list)
    has_manifest: bool = False

    def problem(self, path: Path, reason: str) -> None:
        self.problems.append(Problem(path, reason))

    def add(self, name: str, path: Path, labels: Mapping[str, str], split: str, patient: str) -> None:
        try:
            key = _content_key(path, labels[MODALITY])
        except OSError as error:
            self.problem(path, f"cannot be read ({error.strerror})")
            return
        everything = self.leave_one_patient_out
        self.sources.append(
            Source(name, path, labels, everything or split == DATABASE, everything or split == QUERY, patient, key)
        )


def read_datasets(
    roots: Sequence[Path], *, leave_one_patient_out: bool = False, tasks: Collection[str] = ()
) -> Dataset:
    """Reads what data sets say of themselves; opens no scan.

    Args:
        roots: Each a manifest or a folder that holds `manifest.tsv`, a folder of tasks, or a task's folder.
        leave_one_patient_out: Every case is query and database; splits do not matter.
        tasks: Names or numbers of the tasks of the Decathlon to take; none for all.

    Raises:
        StartupError: A root is no data set, or a task is asked for that the Decathlon does not have.
    """
    reading = _Reading(leave_one_patient_out, frozenset(task.folder for task in map(_task_named, tasks)))
    for place, root in enumerate(roots):
        name = root.resolve().name if root.is_dir() else root.resolve().parent.name
        if name in {other.resolve().name for other in roots[:place]}:
            name = f"{name}-{place + 1}"
        _read_root(reading, root, name)
    sources = _without_repeats(reading)
    return Dataset(
        roots=tuple(roots),
        sources=tuple(sorted(sources, key=lambda source: source.name)),
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
            f"{root} is no data set: it holds neither {MANIFEST} nor a folder of a Decathlon task such as "
            "Task04_Hippocampus, nor is it one"
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
        raise StartupError(f"{manifest.file}: has no modality for any row; without it slices cannot be windowed")
    for row in manifest.rows:
        path = manifest.path_of(row)
        missing = [level for level in LEVELS if level in labelled and not row.columns.get(level)]
        if not path.exists():
            reading.problem(path, "is in the manifest, but there is no such file or folder")
        elif missing:
            reading.problem(path, f"the manifest gives no {' and no '.join(missing)}; the row is left out")
        elif not reading.leave_one_patient_out and row.split not in SPLITS:
            reading.problem(path, "the manifest's column split is neither 'database' nor 'query'; the row is left out")
        else:
            patient = f"{name}:{row.patient}" if row.patient else f"{name}/{row.path}"
            reading.add(f"{name}/{row.path}", path, _labels(row), row.split, patient)


def _read_task(reading: _Reading, folder: Path, name: str) -> None:
    task = _task_of_folder(folder.resolve().name)
    if task is None:
        reading.problem(folder, "is none of the ten tasks that the paper labels; it is left out")
        return
    if reading.wanted_tasks and task.folder not in reading.wanted_tasks:
        return
    reading.tasks.append(task)
    for split, images in SPLITS.items():
        # macOS leaves a ._file beside every file of the Decathlon's archives.
        paths = (
            sorted(
                path
                for path in (folder / images).iterdir()
                if path.name.endswith(_NIFTI) and not path.name.startswith(".")
            )
            if (folder / images).is_dir()
            else []
        )
        if not paths:
            what = "holds no NIfTI file" if (folder / images).is_dir() else "has no such folder"
            reading.problem(folder / images, f"the task {what}: it gives the {split} no volume")
        for path in paths:
            case = f"{name}/{images}/{path.name}"
            reading.add(case, path, task.labels, split, case)


def _task_named(wanted: str) -> Task:
    """Finds a task by folder, name or number."""
    text = wanted.strip().casefold()
    for task in TASKS:
        folder = task.folder.casefold()
        number, _, name = folder.partition("_")
        if text in (folder, name, number, number.removeprefix("task"), number.removeprefix("task0")):
            return task
    raise StartupError(f"'{wanted}' is no task of the Decathlon; it has {', '.join(task.folder for task in TASKS)}")


def _task_of_folder(folder_name: str) -> Task | None:
    _, _, name = folder_name.casefold().partition("_")
    return next((task for task in TASKS if task.folder.casefold().partition("_")[2] == name), None)


def _is_task_name(name: str) -> bool:
    number, _, title = name.partition("_")
    return number[:4] == "Task" and number[4:].isdigit() and bool(title)


def _labels(row: Row) -> dict[str, str]:
    """Gives a row's labels in one spelling, so that data sets can be put together."""
    labels = {level: " ".join(row.columns.get(level, "").split()) for level in LEVELS}
    modality = labels[MODALITY].upper()
    return {
        MODALITY: "MR" if modality == "MRI" else modality,
        BODY_REGION: labels[BODY_REGION].lower(),
        ORGAN: labels[ORGAN].lower(),
    }


def _without_repeats(reading: _Reading) -> list[Source]:
    by_path: dict[Path, list[Source]] = defaultdict(list)
    for source in reading.sources:
        by_path[source.path.resolve()].append(source)
    for path, same in by_path.items():
        if len(same) > 1:
            reading.problem(path, f"is in the data sets {len(same)} times; it is used once")
    return [same[0] for same in by_path.values()]


def _content_key(path: Path, modality: str) -> str:
    """Stands for a source's content without reading it.

    Raises:
        OSError: A file cannot be looked at.
    """
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    stats = [(str(entry.relative_to(path.parent)), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files]
    return hashlib.sha256(json.dumps([modality, str(path.resolve()), stats]).encode()).hexdigest()[:32]
