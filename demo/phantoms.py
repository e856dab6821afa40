"""Draw phantoms: bodies of ellipsoids with CT numbers, slightly different for every invented person."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

AIR, LUNG, FAT, TISSUE, LIVER, BONE = -1000, -850, -100, 40, 60, 700
SPACING_MM = (3.0, 3.0, 5.0)
SHAPE = (128, 128, 24)


@dataclass(frozen=True)
class Ellipsoid:
    """A part of a body: centre and semi-axes as fractions of the volume, and a CT number in HU."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    hu: int


REGIONS: dict[str, tuple[Ellipsoid, ...]] = {
    "head": (
        Ellipsoid((0.5, 0.5, 0.4), (0.32, 0.40, 0.62), BONE),
        Ellipsoid((0.5, 0.5, 0.4), (0.29, 0.37, 0.58), TISSUE),
        Ellipsoid((0.45, 0.5, 0.45), (0.03, 0.12, 0.2), 5),
        Ellipsoid((0.55, 0.5, 0.45), (0.03, 0.12, 0.2), 5),
    ),
    "chest": (
        Ellipsoid((0.5, 0.5, 0.5), (0.45, 0.32, 3.0), FAT),
        Ellipsoid((0.5, 0.5, 0.5), (0.42, 0.29, 3.0), TISSUE),
        Ellipsoid((0.31, 0.5, 0.5), (0.14, 0.22, 0.9), LUNG),
        Ellipsoid((0.69, 0.5, 0.5), (0.14, 0.22, 0.9), LUNG),
        Ellipsoid((0.55, 0.42, 0.4), (0.11, 0.11, 0.4), 50),
        Ellipsoid((0.5, 0.74, 0.5), (0.05, 0.05, 3.0), BONE),
    ),
    "abdomen": (
        Ellipsoid((0.5, 0.5, 0.5), (0.44, 0.33, 3.0), FAT),
        Ellipsoid((0.5, 0.5, 0.5), (0.38, 0.27, 3.0), TISSUE),
        Ellipsoid((0.34, 0.45, 0.7), (0.18, 0.17, 0.5), LIVER + 50),
        Ellipsoid((0.35, 0.64, 0.4), (0.06, 0.07, 0.3), 180),
        Ellipsoid((0.65, 0.64, 0.4), (0.06, 0.07, 0.3), 180),
        Ellipsoid((0.62, 0.38, 0.5), (0.08, 0.06, 0.3), AIR),
        Ellipsoid((0.5, 0.72, 0.5), (0.06, 0.06, 3.0), BONE),
    ),
}


def draw(region: str, person: int) -> NDArray[np.int16]:
    """Return one person's region with noise, int16 `[columns, rows, slices]` in HU."""
    generator = np.random.default_rng([sum(region.encode()), person])
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in SHAPE), indexing="ij")
    body = np.full(SHAPE, AIR, np.float32)
    stature = generator.uniform(0.92, 1.08, size=3)
    for part in REGIONS[region]:
        shift = generator.normal(scale=0.01, size=3)
        half_axes = np.array(part.half_axes) * stature * generator.uniform(0.95, 1.05, size=3)
        distance = sum(
            ((axis - centre - move) / half) ** 2
            for axis, centre, move, half in zip(axes, part.centre, shift, half_axes, strict=True)
        )
        body[distance <= 1] = part.hu
    noise = generator.normal(scale=12, size=SHAPE)
    return np.clip(body + noise, -1024, 3000).astype(np.int16)


def write_phantoms(folder: Path, people: int = 3) -> Path:
    """Write a NIfTI file per region and person, and a manifest with their labels; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Columns run from right to left, rows from front to back, slices upwards.
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    rows = ["path\tmodality\tbody_region\tpatient"]
    for region in REGIONS:
        for person in range(1, people + 1):
            name = f"phantom-{region}-{person}.nii.gz"
            nibabel.Nifti1Image(draw(region, person), affine).to_filename(folder / name)
            rows.append(f"{name}\tCT\t{region}\tphantom-{region}-{person}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder


if __name__ == "__main__":
    for named in sys.argv[1:]:
        write_phantoms(Path(named))
