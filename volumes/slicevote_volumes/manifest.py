"""The manifest, a table beside the scans that labels them: `manifest.tsv`, one row for every file or folder."""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from slicevote_volumes.modality import check_modality
from slicevote_volumes.volume import Volume

FILE_NAME = "manifest.tsv"
PARENTS_SEARCHED = 6
NOT_LABELS = frozenset(("path", "split", "patient", "dims", "spacing_mm", "licence", "source", "note"))


class ManifestError(ValueError):
    """A manifest cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Row:
    """What the manifest says about one file, or about the folder of one series.

    Attributes:
        path: Path relative to the manifest's folder.
        columns: Every column and its value; the modality is normalised. Not shown by repr(): one of them is the
            patient.
    """

    path: str
    columns: Mapping[str, str] = field(repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """Columns that label the volume; those without a value are left out."""
        return {key: value for key, value in self.columns.items() if key not in NOT_LABELS and value}

    @property
    def patient(self) -> str:
        """Who the patient is, in the manifest's own words; empty if unknown."""
        return self.columns.get("patient", "")

    @property
    def modality(self) -> str:
        """DICOM modality code; empty if unknown."""
        return self.columns.get("modality", "")

    @property
    def split(self) -> str:
        """Which part of a data set the scan belongs to; empty if unknown."""
        return self.columns.get("split", "")


@dataclass(frozen=True)
class Manifest:
    """A manifest and its rows.

    Attributes:
        file: The manifest.
        rows: Its rows, in order.
    """

    file: Path
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder that the paths of the rows are relative to."""
        return self.file.parent

    def path_of(self, row: Row) -> Path:
        """Return the file or folder that a row describes."""
        return self.folder / row.path

    def missing(self) -> list[Row]:
        """Return the rows whose file or folder does not exist."""
        return [row for row in self.rows if not self.path_of(row).exists()]

    def row_for(self, volume: Volume) -> Row | None:
        """Return the row of a volume: that of its file, or of the folder that holds its files.

        If the files of a series are spread over several rows, the row that holds most of them wins.
        """
        found: Counter[Path] = Counter()
        for path in volume.paths:
            place = path.resolve()
            found.update([place] if place in self._by_path else [place.parent] if place.parent in self._by_path else [])
        return self._by_path[found.most_common(1)[0][0]] if found else None

    @cached_property
    def _by_path(self) -> dict[Path, Row]:
        return {self.path_of(row).resolve(): row for row in self.rows}


def load_manifest(file: Path) -> Manifest:
    """Read a manifest: tab-separated, UTF-8, column names in the first line, one of them `path`.

    Raises:
        ManifestError: The file cannot be read, has no path column, a line with too few or too many columns, a path that
            is empty or absolute, a modality that DICOM does not define, or two rows for one path.
    """
    try:
        lines = list(
            csv.reader(file.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file}: cannot be read as tab-separated UTF-8 ({type(error).__name__})") from error
    names = [name.strip() for name in lines[0]] if lines else []
    if "path" not in names:
        raise ManifestError(f"{file}: has no column `path`; the first line must name the columns, separated by tabs")
    if len(set(names)) < len(names):
        raise ManifestError(f"{file}: two columns have the same name")
    rows: dict[str, Row] = {}
    for number, values in enumerate(lines[1:], start=2):
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(names):
            raise ManifestError(f"{file}: line {number} has {len(values)} columns, the first line names {len(names)}")
        columns = {name: value.strip() for name, value in zip(names, values, strict=True)}
        path = columns["path"]
        if not path or Path(path).is_absolute():
            raise ManifestError(f"{file}: line {number}: path must be given, relative to the manifest's folder")
        if path in rows:
            raise ManifestError(f"{file}: line {number}: a second row for {path}")
        try:
            if "modality" in columns:
                columns["modality"] = check_modality(columns["modality"])
        except ValueError as error:
            raise ManifestError(f"{file}: line {number}: {error}") from None
        rows[path] = Row(path, columns)
    return Manifest(file, tuple(rows.values()))


def find_manifest(path: Path) -> Manifest | None:
    """Return the manifest in a folder, or a file's folder, or up to 6 folders above; None if there is none.

    A `manifest.tsv` without a column `path` is something else and is passed over.

    Raises:
        ManifestError: The manifest has an error in it.
    """
    start = path.resolve()
    if not start.is_dir():
        start = start.parent
    for folder in [start, *list(start.parents)[:PARENTS_SEARCHED]]:
        file = folder / FILE_NAME
        if file.is_file() and _has_path_column(file):
            return load_manifest(file)
    return None


def _has_path_column(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        return "path" in [name.strip() for name in lines.readline().split("\t")]


def labelled(volume: Volume, row: Row) -> Volume:
    """Return the volume with a row's labels and, if the row has them, its modality and patient.

    The modality matters: a NIfTI file that the row calls CT is windowed in HU from then on.
    """
    return volume.with_labels(row.labels, modality=row.modality or None, patient_id=row.patient or None)
