"""Orientation: the same scan gives the same slices, whatever its orientation and format."""

import subprocess
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slicevote_volumes import decode_instance, read_volumes
from slicevote_volumes.geometry import GeometryError, dicom_affine, plane_normal, transversal

from tests.volumes.phantoms import (
    ACQUISITIONS,
    ALL_AXES,
    AXIAL,
    SAGITTAL,
    TRANSPOSED,
    Axes,
    acquire,
    assert_is,
    phantom,
    turn,
    values,
    write_dicom,
    write_nifti,
)


@pytest.mark.parametrize("axes", ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def test_dicom_series_in_any_orientation_give_the_truth(tmp_path: Path, axes: Axes):
    scan = phantom()
    write_dicom(tmp_path, scan, axes)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.img"])
@pytest.mark.parametrize("axes", ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def test_nifti_in_any_orientation_gives_the_truth(tmp_path: Path, axes: Axes, name: str):
    scan = phantom()
    kind = nibabel.Nifti1Pair if name.endswith("img") else nibabel.Nifti1Image
    write_nifti(tmp_path / name, scan, axes, kind=kind)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(ALL_AXES),
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    name=st.sampled_from(["scan.nii", "scan.nii.gz"]),
    about=st.integers(0, 2),
    degrees=st.floats(-40, 40),
)
def test_every_axis_order_and_direction_gives_the_truth(tmp_path_factory, axes, shape, dtype, name, about, degrees):
    scan = phantom(shape, dtype)
    path = tmp_path_factory.mktemp("scan") / name
    write_nifti(path, scan, axes, rotation=turn(about, degrees))
    (volume,) = read_volumes(path)
    assert_is(volume, scan, tolerance_mm=1e-2)  # NIfTI keeps its affine in single precision
    assert volume.slice(0).pixels.dtype == np.dtype(dtype)


@pytest.mark.parametrize("degrees", [45, -45, 135])
@pytest.mark.parametrize("about", [0, 1, 2])
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, TRANSPOSED])
def test_a_tie_between_two_axes_falls_alike_for_dicom_and_nifti(tmp_path: Path, axes: Axes, about: int, degrees: int):
    scan = phantom((4, 5, 6))
    write_dicom(tmp_path / "dicom", scan, axes, rotation=turn(about, degrees))
    # NIfTI keeps columns first, and rows from bottom to top, as dcm2niix does.
    planes, (rows, sign), columns = axes
    write_nifti(tmp_path / "scan.nii", scan, (columns, (rows, -sign), planes), rotation=turn(about, degrees))
    (dicom,), (nifti,) = read_volumes(tmp_path / "dicom"), read_volumes(tmp_path / "scan.nii")
    np.testing.assert_array_equal(values(dicom), values(nifti))
    np.testing.assert_allclose(dicom.positions_mm, nifti.positions_mm, atol=1e-3)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("rotation", [None, turn(0, 17), turn(2, -25)], ids=["straight", "tilted", "turned"])
@pytest.mark.parametrize("axes", ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def test_the_spacing_of_the_pixels_is_that_of_the_slices(tmp_path: Path, axes: Axes, rotation, name: str):
    """However the scan was acquired, rows lie 0.9 mm apart and columns 0.7 mm."""
    scan = phantom((3, 5, 6))
    write_dicom(tmp_path / "dicom", scan, axes, rotation=rotation)
    write_nifti(tmp_path / name, scan, axes, rotation=rotation)
    for path in (tmp_path / "dicom", tmp_path / name):
        (volume,) = read_volumes(path)
        assert volume.pixel_spacing_mm == pytest.approx((0.9, 0.7), abs=1e-5)


def without(*keywords: str, **values: object):
    def edit(ds, plane):
        for keyword in keywords:
            delattr(ds, keyword)
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("axes", "edit", "expected"),
    [
        (AXIAL, without("PixelSpacing"), None),
        (AXIAL, without(PixelSpacing=["0", "1"]), None),
        (AXIAL, without(PixelSpacing=["-1", "1"]), None),
        (AXIAL, without("PixelSpacing", ImagerPixelSpacing=["0.4", "0.3"]), (0.4, 0.3)),
        (AXIAL, without("SliceThickness"), (0.9, 0.7)),
        (AXIAL, without("ImagePositionPatient", "SliceThickness"), (0.9, 0.7)),
        (SAGITTAL, without("PixelSpacing"), None),
        (SAGITTAL, without("SliceThickness"), (0.9, 0.7)),
        (SAGITTAL, without("ImagePositionPatient", "SliceThickness"), None),
        (SAGITTAL, without("ImagePositionPatient", SliceThickness="4"), (0.9, 4.0)),
        (SAGITTAL, without("ImagePositionPatient", SliceThickness="0"), None),
    ],
)
def test_spacing_that_the_header_does_not_give_is_unknown(tmp_path: Path, axes: Axes, edit, expected):
    write_dicom(tmp_path, phantom((3, 5, 6)), axes, edit=edit)
    (volume,) = read_volumes(tmp_path)
    assert volume.pixel_spacing_mm == (expected and pytest.approx(expected))


def test_spacing_of_nifti_is_in_millimetres(tmp_path: Path):
    image = nibabel.Nifti1Image(np.ones((4, 5, 3), "i2"), np.diag([-0.001, -0.002, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "scan.nii")
    assert read_volumes(tmp_path)[0].pixel_spacing_mm == pytest.approx((2.0, 1.0))


def convert(folder: Path, out: Path) -> Path:
    out.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "scan", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    converted = [path for path in out.glob("*.nii") if "_Eq" not in path.name and "_Tilt" not in path.name]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(converted) == 1, done.stdout
    return converted[0]


@pytest.mark.parametrize("rotation", [None, turn(0, 17), turn(1, -25)], ids=["straight", "tilted", "turned"])
@pytest.mark.parametrize("axes", ACQUISITIONS.values(), ids=ACQUISITIONS.keys())
def test_dicom_and_its_conversion_by_dcm2niix_are_the_same_slices(tmp_path: Path, axes: Axes, rotation):
    scan = phantom((6, 10, 8))

    def edit(ds, plane):
        ds.RescaleSlope, ds.RescaleIntercept = "2", "-7"

    write_dicom(tmp_path / "dicom", scan, axes, rotation=rotation, edit=edit)
    (dicom,) = read_volumes(tmp_path / "dicom")
    (nifti,) = read_volumes(convert(tmp_path / "dicom", tmp_path / "nifti"))
    np.testing.assert_array_equal(values(dicom), values(nifti))
    np.testing.assert_array_equal(values(dicom), scan.values * 2.0 - 7)
    np.testing.assert_allclose(dicom.positions_mm, nifti.positions_mm, atol=1e-3)


@pytest.mark.parametrize("axes", [axes for axes in ALL_AXES if axes[0][0] == 2])
def test_a_single_instance_is_oriented_as_in_its_volume(tmp_path: Path, axes: Axes):
    scan = phantom()
    paths = write_dicom(tmp_path, scan, axes, rotation=turn(0, 20))
    (volume,) = read_volumes(tmp_path)
    for path in paths:
        alone = decode_instance(path.read_bytes(), 3)
        same = [one for one in volume.slices(range(len(volume))) if one.sop_instance_uid == alone.sop_instance_uid]
        assert alone.index == 3
        np.testing.assert_array_equal(alone.pixels, same[0].pixels)


def test_gantry_tilt_puts_positions_along_the_normal_of_the_slices(tmp_path: Path):
    scan = phantom()
    tilt = turn(0, 18)

    def edit(ds, plane):  # planes are tilted, the table still moves straight
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in (*tilt[:, 0], *tilt[:, 1])]

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), scan.values)
    np.testing.assert_allclose(np.diff(volume.positions_mm), scan.spacing[2] * np.cos(np.radians(18)), atol=1e-6)


def test_variable_gaps_are_kept(tmp_path: Path):
    scan = phantom()
    places = [0.0, 1.0, 2.5, 6.0, 6.5, 20.0]

    def edit(ds, plane):
        ds.ImagePositionPatient = [scan.origin[0], scan.origin[1], -50 + places[plane]]

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_allclose(volume.positions_mm, np.array(places) - 50)
    np.testing.assert_array_equal(values(volume), scan.values)


def test_affines_that_place_nothing_are_refused():
    with pytest.raises(GeometryError, match="three dimensions"):
        transversal(np.diag([1.0, 1.0, 0.0, 1.0]), (3, 3, 3))
    with pytest.raises(GeometryError, match="finite"):
        transversal(np.diag([1.0, np.nan, 1.0, 1.0]), (3, 3, 3))
    with pytest.raises(GeometryError, match="ImageOrientationPatient"):
        plane_normal((1.0, 0.0, 0.0, 1.0, 0.0, 0.0))


def test_a_view_costs_no_copy():
    block, _ = acquire(phantom(), SAGITTAL)
    affine = dicom_affine((0, 1, 0, 0, 0, -1), (1, 1), np.zeros(3), np.array([1.0, 0, 0]))
    assert np.shares_memory(transversal(affine, block.shape).slices(block), block)
