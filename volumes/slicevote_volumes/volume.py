"""The data model: volumes, their slices, and the intensity range that displays them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slicevote_volumes.modality import CT, check_modality, normalise_modality

INTENSITY_PERCENTILES = (0.5, 99.5)
INTENSITY_SLICES = 16
ELEMENT_TYPES = frozenset(
    np.dtype(name) for name in ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")
)  # what a slice may consist of
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in YBR_FULL (PS3.3 C.7.6.3.1.2)


@dataclass(frozen=True)
class IntensityRange:
    """Closed interval of rescaled values, displayed as black to white."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Slice:
    """One transversal slice: rows from anterior to posterior, columns from the patient's right to the left.

    Attributes:
        index: Which slice of the volume, from 0, the most inferior one.
        pixels: Stored values [rows, columns], C-contiguous, little-endian; one of `ELEMENT_TYPES`. May be read-only.
        rescale_slope: Value = stored * rescale_slope + rescale_intercept, in HU for CT. Finite and not 0.
        rescale_intercept: See rescale_slope. Finite.
        sop_instance_uid: DICOM SOP Instance UID; empty if the slice is not one DICOM image.
    """

    index: int
    pixels: NDArray[Any]
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    sop_instance_uid: str = ""

    def values(self) -> NDArray[np.float32]:
        """Return the rescaled values, float32 [rows, columns], in an array of their own."""
        values = self.pixels.astype(np.float32)
        if self.rescale_slope != 1.0:
            values *= np.float32(self.rescale_slope)
        if self.rescale_intercept != 0.0:
            values += np.float32(self.rescale_intercept)
        return values


class SliceSource(Protocol):
    """Decodes the slices of one volume. Safe to use from several threads."""

    def read(self, index: int) -> Slice:
        """Decode a slice; the index is in range.

        Raises:
            VolumeError: The slice cannot be decoded.
        """

    def release(self) -> None:
        """Drop the pixels kept in memory; the next read decodes again."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan as a stack of transversal slices, the most inferior first, decoded on demand.

    Attributes:
        id: Deterministic id, a UUID. Does not depend on where the files are stored.
        positions_mm: Position of every slice along the slices' normal, ascending.
        shape: Rows and columns of every slice.
        slice_source: Decodes the slices.
        source: Where the volume comes from: a folder, a file, or a file and its protocol ("scan.nii.gz:3").
        paths: The files it consists of, in the order of acquisition; empty if it does not come from files.
        modality: DICOM modality code ("CT", "MR"); empty if unknown.
        labels: Free labels. Nothing in them identifies a patient.
        patient_id: PatientID as the scan gives it; empty if unknown. Never shown by repr().
        study_instance_uid: DICOM Study Instance UID; empty if there is none.
        series_instance_uid: DICOM Series Instance UID; empty if there is none.
        pixel_spacing_mm: Distance between rows and between columns of the slices, positive; None if it is unknown.
        split: What tells it apart from the other volumes of its series or file, in readable words, for example
            {"echo time": "80", "b-value": "800"}. Nothing in it identifies a patient.
        series_number: DICOM Series Number; None if there is none.
    """

    id: str
    positions_mm: tuple[float, ...] = field(repr=False)
    shape: tuple[int, int]
    slice_source: SliceSource = field(repr=False)
    source: str
    paths: tuple[Path, ...] = field(repr=False)
    modality: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    patient_id: str = field(default="", repr=False)
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    pixel_spacing_mm: tuple[float, float] | None = None
    split: Mapping[str, str] = field(default_factory=dict)
    series_number: int | None = None
    _seen: dict[int, Slice] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Normalise the modality, and freeze labels and split.

        Raises:
            ValueError: The modality is not a DICOM code string.
        """
        object.__setattr__(self, "modality", normalise_modality(self.modality))
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "split", MappingProxyType(dict(self.split)))

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.positions_mm)

    def slice(self, index: int) -> Slice:
        """Decode one slice.

        Args:
            index: Index of the slice, from 0.

        Raises:
            IndexError: There is no such slice.
            VolumeError: The slice cannot be decoded; names the file and the slice.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of a volume of {len(self)} slices")
        with self._lock:
            seen = self._seen.pop(index, None)
        return self.slice_source.read(index) if seen is None else seen

    def slices(self, indices: Iterable[int]) -> Iterator[Slice]:
        """Decode slices one after another, in the order given."""
        return (self.slice(index) for index in indices)

    def intensity_range(self) -> IntensityRange | None:
        """Return the 0.5 and 99.5 percentiles of the finite values of up to 16 slices spread over the volume.

        The slices decoded for it are kept until they are read once, so that streaming a compressed volume does not
        decode them twice.

        Returns:
            The range; None for CT, whose values are windowed in HU, and if the percentiles show no contrast.

        Raises:
            VolumeError: One of these slices cannot be decoded.
        """
        if self.modality == CT:
            return None
        samples = []
        for index in spread(len(self), INTENSITY_SLICES):
            decoded = self.slice(index)
            with self._lock:
                self._seen[index] = decoded
            values = decoded.values().ravel()
            samples.append(values[np.isfinite(values)])
        sample = np.concatenate(samples)
        if not sample.size:
            return None
        low, high = (float(value) for value in np.percentile(sample, INTENSITY_PERCENTILES, overwrite_input=True))
        return IntensityRange(low, high) if low < high else None

    def release(self) -> None:
        """Drop the pixels kept in memory. The volume stays usable: slices are decoded again on demand."""
        with self._lock:
            self._seen.clear()
        self.slice_source.release()

    def description(self) -> str:
        """Return one line that tells the volume apart from others of its folder.

        It has modality, series number, slices x rows x columns, spacing in the same order, and the split, as far as
        they are known: "MR, series 4, 24 x 320 x 320, 3.3 x 0.5 x 0.5 mm, echo time 80". Nothing in it identifies a
        patient.
        """
        parts = [self.modality or "modality unknown"]
        if self.series_number is not None:
            parts.append(f"series {self.series_number}")
        parts.append(" x ".join(map(str, (len(self), *self.shape))))
        if self.pixel_spacing_mm is not None:
            between = [float(np.median(np.diff(self.positions_mm)))] if len(self) > 1 else []
            parts.append(" x ".join(f"{spacing:.3g}" for spacing in (*between, *self.pixel_spacing_mm)) + " mm")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.split.items())])

    def with_labels(
        self, labels: Mapping[str, str], *, modality: str | None = None, patient_id: str | None = None
    ) -> "Volume":
        """Return the volume with more labels and, if given, another modality and patient.

        Args:
            labels: Win over the volume's own labels. A label `modality` is the modality.
            modality: DICOM modality code; wins over the label.
            patient_id: PatientID.

        Raises:
            ValueError: DICOM defines no such modality.
        """
        if modality is None:
            modality = labels.get("modality")
        modality = self.modality if modality is None else check_modality(modality)
        named = {"modality": modality} if modality else {}
        own = {key: value for key, value in {**self.labels, **labels}.items() if key != "modality"}
        return replace(
            self,
            modality=modality,
            labels={**own, **named},
            patient_id=self.patient_id if patient_id is None else patient_id,
        )


def spread(length: int, count: int) -> list[int]:
    """Return the indices in the middle of `count` equal parts of `length` things; all of them if there are fewer."""
    if length <= count:
        return list(range(length))
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def luminance(colour: NDArray[Any]) -> NDArray[Any]:
    """Return the luminance [rows, columns] of RGB values [rows, columns, 3 or more], of the same type."""
    grey = colour[..., :3].astype(np.float32) @ _LUMINANCE
    return grey.round().astype(colour.dtype) if colour.dtype.kind in "iu" else grey.astype(colour.dtype)
