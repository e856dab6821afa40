"""`--check-on`: nearest neighbours of the slices of volumes."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from slicevote_exporters.errors import ExportError
from slicevote_exporters.export import ExportRequest, export_backbone
from slicevote_exporters.real_slices import compare_neighbours, grey, nearest_others, read_slices
from slicevote_exporters.registry import find


def test_grey_values_span_the_percentiles_and_keep_the_picture():
    values = np.tile(np.linspace(-1000, 1000, 448, dtype=np.float32), (448, 1))
    values[0, 0] = 1e6
    picture = grey(values)
    assert picture.shape == (224, 224)
    assert picture.dtype == np.float32
    assert (picture.min(), picture.max()) == (0, 1)
    assert np.all(np.diff(picture[5]) >= 0)
    np.testing.assert_allclose(picture[5, 112], 0.5, atol=0.01)


@pytest.mark.parametrize("values", [np.zeros((8, 8)), np.full((8, 8), np.nan)])
def test_a_slice_without_contrast_has_no_grey_values(values):
    assert grey(values.astype(np.float32)) is None


def test_nearest_neighbours_that_change_are_counted():
    reference = np.eye(4, dtype=np.float32)
    reference[1] = [0.9, np.sqrt(1 - 0.81), 0, 0]
    assert nearest_others(reference)[:2].tolist() == [1, 0]
    changed = reference.copy()
    changed[2] = [0, 0, 0.6, 0.8]
    report = compare_neighbours(reference, changed, volume_count=2)
    assert (report.slice_count, report.volume_count) == (4, 2)
    assert report.unchanged_share == 0.5  # Slices 2 and 3 are now each other's nearest.
    assert report.minimum_cosine == pytest.approx(0.6)


def write_volume(path, seed, slice_count=20):
    generator = np.random.default_rng(seed)
    coarse = generator.random((6, 6, slice_count))
    nibabel.save(nibabel.Nifti1Image(np.kron(coarse, np.ones((8, 8, 1))).astype(np.float32), np.eye(4)), path)


def test_sixteen_slices_of_every_volume_are_read_and_what_is_no_volume_is_passed_over(tmp_path):
    for seed in (1, 2):
        write_volume(tmp_path / f"{seed}.nii.gz", seed)
    (tmp_path / "notes.txt").write_text("not a volume")
    slices, volumes = read_slices(tmp_path)
    assert (slices.shape, slices.dtype, volumes) == ((32, 224, 224), np.float32, 2)
    assert slices.min() >= 0
    assert slices.max() <= 1


def test_a_folder_without_volumes_says_so(tmp_path):
    with pytest.raises(ExportError, match="no two slices with contrast"):
        read_slices(tmp_path)


def test_an_export_reports_on_the_volumes_it_is_given(tmp_path):
    write_volume(tmp_path / "scan.nii.gz", 3)
    request = ExportRequest(find("efficientnet-lite0"), tmp_path / "e.onnx", check_on=tmp_path / "scan.nii.gz")
    neighbours = export_backbone(request).neighbours
    assert (neighbours.slice_count, neighbours.volume_count, neighbours.unchanged_share) == (16, 1, 1.0)
    assert neighbours.minimum_cosine > 0.9999


@pytest.mark.realdata
@pytest.mark.slow
def test_half_precision_keeps_the_neighbours_of_real_slices(tmp_path, shared_data):
    request = ExportRequest(
        find("efficientnet-lite0"), tmp_path / "e.onnx", precision="fp16", check_on=shared_data / "volumes"
    )
    neighbours = export_backbone(request).neighbours
    assert neighbours.slice_count > 100
    assert neighbours.unchanged_share > 0.95
