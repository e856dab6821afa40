"""Volumes: intensity range, labels, description, and what they keep in memory."""

import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from slicevote_volumes import IntensityRange, Slice, Volume, VolumeError, read_volumes
from slicevote_volumes.volume import spread

from tests.volumes.phantoms import PATIENT, SAGITTAL, Phantom, phantom, values, write_dicom, write_nifti


class Counting:
    """Slices of an array, counting how often each is decoded."""

    def __init__(self, array: np.ndarray, slope: float = 1.0):
        self.array, self.slope, self.read_indices, self.released = array, slope, [], 0

    def read(self, index: int) -> Slice:
        self.read_indices.append(index)
        return Slice(index, self.array[index], self.slope)

    def release(self) -> None:
        self.released += 1


def volume(array: np.ndarray, modality: str = "MR", slope: float = 1.0) -> tuple[Volume, Counting]:
    source = Counting(array, slope)
    positions = tuple(float(index) for index in range(len(array)))
    return Volume("id", positions, array.shape[1:], source, "somewhere", (), modality=modality), source


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, []), (3, [0, 1, 2]), (16, list(range(16))), (32, list(range(1, 32, 2))), (17, None), (1000, None)],
)
def test_slices_are_spread_over_the_volume(length: int, expected):
    indices = spread(length, 16)
    assert indices == sorted(set(indices))
    assert len(indices) == min(length, 16)
    assert all(0 <= index < length for index in indices)
    if expected is not None:
        assert indices == expected
    assert not indices or indices[0] == length - 1 - indices[-1] or length < 33


def test_intensity_range_is_the_percentiles_of_rescaled_values():
    array = np.random.default_rng(0).integers(0, 1000, (40, 20, 20)).astype("u2")
    scan, _ = volume(array, slope=0.5)
    sample = array[spread(40, 16)] * np.float32(0.5)
    low, high = np.percentile(sample, [0.5, 99.5])
    assert scan.intensity_range() == IntensityRange(pytest.approx(low), pytest.approx(high))


def test_intensity_range_ignores_what_is_not_finite():
    array = np.linspace(0, 100, 4 * 50 * 50, dtype="f4").reshape(4, 50, 50)
    array[0, :10] = np.nan
    array[1, 0] = np.inf
    array[2, 0] = -np.inf
    found = volume(array)[0].intensity_range()
    low, high = np.percentile(array[np.isfinite(array)], [0.5, 99.5])
    assert found == IntensityRange(pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("array", [np.full((3, 4, 4), 7, "i2"), np.full((3, 4, 4), np.nan, "f4")])
def test_no_contrast_no_range(array: np.ndarray):
    assert volume(array)[0].intensity_range() is None


def test_ct_has_no_range_and_is_not_decoded_for_one():
    scan, source = volume(np.arange(48, dtype="i2").reshape(3, 4, 4), modality="CT")
    assert scan.intensity_range() is None
    assert source.read_indices == []


def test_streaming_after_the_range_decodes_every_slice_once():
    scan, source = volume(np.arange(40 * 16, dtype="i2").reshape(40, 4, 4))
    scan.intensity_range()
    np.testing.assert_array_equal(values(scan), source.array)
    assert sorted(source.read_indices) == list(range(40))
    values(scan)  # kept until read once, not longer
    assert len(source.read_indices) == 80


def test_release_drops_what_is_kept():
    scan, source = volume(np.arange(40 * 16, dtype="i2").reshape(40, 4, 4))
    scan.intensity_range()
    scan.release()
    values(scan)
    assert (len(source.read_indices), source.released) == (56, 1)


def test_a_reformatted_volume_is_decoded_anew_after_release(tmp_path: Path):
    scan = phantom()
    paths = write_dicom(tmp_path, scan, SAGITTAL)
    (found,) = read_volumes(tmp_path)
    found.slice(0)
    paths[0].rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(values(found), scan.values)
    found.release()
    with pytest.raises(VolumeError, match="cannot be read"):
        found.slice(0)


def test_dicom_and_nifti_have_the_same_range(tmp_path: Path):
    scan = phantom((40, 16, 12))
    write_dicom(tmp_path / "dicom", scan)
    write_nifti(tmp_path / "scan.nii.gz", scan)
    (dicom,), (nifti,) = read_volumes(tmp_path / "dicom"), read_volumes(tmp_path / "scan.nii.gz")
    assert dicom.intensity_range() == nifti.intensity_range() is not None


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_out_of_range(index: int, tmp_path: Path):
    write_nifti(tmp_path / "scan.nii", phantom())
    with pytest.raises(IndexError, match="of a volume of 6 slices"):
        read_volumes(tmp_path)[0].slice(index)


def test_values_do_not_touch_the_pixels():
    one = Slice(0, np.array([[1, 2]], "u1"), 2.0, -1.0)
    np.testing.assert_array_equal(one.values(), [[1, 3]])
    np.testing.assert_array_equal(one.pixels, [[1, 2]])
    assert one.values().dtype == np.float32
    plain = Slice(0, np.array([[1, 2]], "f4"))
    plain.values()[:] = 9
    np.testing.assert_array_equal(plain.pixels, [[1, 2]])


def test_a_description_says_what_is_known():
    scan, _ = volume(np.zeros((1, 4, 5), "i2"), modality="")
    assert scan.description() == "modality unknown, 1 x 4 x 5"
    scan = replace(scan, pixel_spacing_mm=(0.5, 2.0), split={"echo": "2"}, series_number=0)
    assert scan.description() == "modality unknown, series 0, 1 x 4 x 5, 0.5 x 2 mm, echo 2"
    scan, _ = volume(np.zeros((3, 4, 5), "i2"))
    assert replace(scan, pixel_spacing_mm=(0.5, 2.0)).description() == "MR, 3 x 4 x 5, 1 x 0.5 x 2 mm"
    with pytest.raises(TypeError):
        scan.split["echo"] = "2"


def test_labels_and_modality_can_be_given(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", Phantom(phantom().values))
    (found,) = read_volumes(path)
    assert (found.modality, dict(found.labels), found.patient_id) == ("", {}, "")
    ct = found.with_labels({"organ": "knee", "modality": "wrong"}, modality="CT", patient_id=PATIENT)
    assert dict(ct.labels) == {"organ": "knee", "modality": "CT"}
    assert (ct.id, ct.patient_id) == (found.id, PATIENT)
    assert PATIENT not in repr(ct)
    assert found.intensity_range() is not None
    assert ct.intensity_range() is None
    with pytest.raises(FrozenInstanceError):
        ct.modality = "MR"
    with pytest.raises(TypeError):
        ct.labels["organ"] = "hip"


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VolumeError(Path("a"), "is wrong")))
    assert (str(error), error.path, error.reason) == ("a: is wrong", Path("a"), "is wrong")
    assert str(VolumeError(None, "is wrong")) == "is wrong"
