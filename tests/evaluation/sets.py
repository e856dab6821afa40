"""Small data sets in the two layouts, drawn by the tests."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from tests.support.phantoms import phantom, write_nifti

# Liver and spleen look alike, and so do heart and hippocampus.
PATTERN_SEEDS = {"Task02_Heart": 33, "Task03_Liver": 22, "Task04_Hippocampus": 33, "Task09_Spleen": 22}


def picture(task: str, number: int, *, slices: int, blank: tuple[int, ...] = ()) -> np.ndarray:
    """A volume of a task, int16 [slices, 48, 48].

    Every slice is a mixture of what the task looks like and one of a few pictures that all tasks share, so that the
    slices of a volume find different volumes, and not always of their own task.
    """
    generator = np.random.default_rng([list(PATTERN_SEEDS).index(task), number])
    stack = phantom(PATTERN_SEEDS[task], slices=slices).astype(np.float64)
    shared = np.stack([phantom(int(seed), slices=1)[0] for seed in generator.integers(100, 110, size=slices)])
    mixed = 0.2 * stack + 0.8 * shared + generator.normal(0, 60, size=stack.shape)
    for index in blank:
        mixed[index] = -1000
    return mixed.clip(-1000, 1000).astype(np.int16)


def write_task(root: Path, task: str, database: int, queries: int, *, slices: int = 9) -> Path:
    """Writes a task in the Decathlon's layout; slice counts and gaps differ, one query has blank slices."""
    for split, count, offset in (("imagesTr", database, 0), ("imagesTs", queries, 100)):
        folder = root / task / split
        folder.mkdir(parents=True)
        for number in range(count):
            own = slices + 3 * number
            blank = (0, own - 1) if split == "imagesTs" and number == 0 else ()
            stack = picture(task, offset + number, slices=own, blank=blank)
            write_nifti(folder / f"case_{offset + number:03}.nii.gz", stack, spacing_mm=1.5 + number)
    return root / task


def write_protocols(path: Path, task: str, number: int, protocols: int, *, slices: int = 8) -> Path:
    """Writes a 4-D file: one volume a protocol."""
    stacks = [picture(task, number + protocol, slices=slices) for protocol in range(protocols)]
    block = np.stack([stack.transpose(2, 1, 0) for stack in stacks], axis=-1)
    affine = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 2.5, 0], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.ascontiguousarray(block), affine).to_filename(path)
    return path


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Writes a manifest with the columns of its first row."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    lines = ["\t".join(names), *("\t".join(row[name] for name in names) for row in rows)]
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def row(path: str, split: str, organ: str, patient: str, *, modality: str = "CT", region: str = "abdomen") -> dict:
    """A row of a manifest."""
    return {
        "path": path,
        "split": split,
        "modality": modality,
        "body_region": region,
        "organ": organ,
        "patient": patient,
    }
