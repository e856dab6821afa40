"""NIfTI files: formats, types, orientations, and damage."""

import gzip
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path
from slicevote_volumes import VolumeError, discover, read_volumes

from tests.volumes.phantoms import AXIAL, CORONAL, SAGITTAL, TRANSPOSED, assert_is, phantom, values, write_nifti

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(array: np.ndarray, path: Path, affine: np.ndarray = RAS, **header: object) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_4d_gives_a_volume_a_protocol(tmp_path: Path, name: str):
    array = np.random.default_rng(0).integers(0, 500, (5, 6, 4, 3)).astype("i2")
    path = save(array, tmp_path / name)
    volumes = read_volumes(path, modality="MR")
    assert [volume.labels["protocol"] for volume in volumes] == ["0", "1", "2"]
    assert [volume.source for volume in volumes] == [f"{path}:0", f"{path}:1", f"{path}:2"]
    assert [dict(volume.split) for volume in volumes] == [{"protocol": str(number)} for number in range(3)]
    assert volumes[2].description() == "MR, 4 x 6 x 5, 1 x 1 x 1 mm, protocol 2"
    assert len({volume.id for volume in volumes}) == 3
    for protocol, volume in enumerate(volumes):
        np.testing.assert_array_equal(values(volume), array[..., protocol].transpose(2, 1, 0))


def test_a_4d_file_is_decompressed_once_until_all_protocols_have_let_go(tmp_path: Path):
    path = save(np.ones((5, 6, 4, 3), "i2"), tmp_path / "scan.nii.gz")
    volumes = read_volumes(path)
    for volume in volumes:
        volume.slice(0)
    path.unlink()
    for volume in volumes[:2]:
        volume.release()
        volume.slice(1)  # taken up again
    for volume in volumes:
        volume.release()
    with pytest.raises(VolumeError, match="slice 1: cannot be read"):
        volumes[0].slice(1)


def test_a_trailing_axis_of_one_is_no_protocol(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 500, (5, 6, 4, 1, 1)).astype("i2")
    (volume,) = read_volumes(save(array, tmp_path / "scan.nii"))
    np.testing.assert_array_equal(values(volume), array[..., 0, 0].transpose(2, 1, 0))
    assert "protocol" not in volume.labels


def test_stored_type_and_scaling_are_passed_through(tmp_path: Path):
    array = np.arange(5 * 6 * 4, dtype="u2").reshape(5, 6, 4)
    image = nibabel.Nifti1Image(array, RAS)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    raw = bytearray(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes()))
    raw[352:] = array.tobytes(order="F")  # nibabel had scaled what it wrote
    (tmp_path / "scan.nii").write_bytes(raw)
    (volume,) = read_volumes(tmp_path / "scan.nii")
    one = volume.slice(2)
    assert (one.pixels.dtype, one.rescale_slope, one.rescale_intercept) == (np.uint16, 0.5, -3.0)
    np.testing.assert_array_equal(one.values(), array[:, :, 2].T * 0.5 - 3)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_big_endian_and_nifti_2(tmp_path: Path, kind: type):
    scan = phantom()
    array = np.ascontiguousarray(scan.values.transpose(2, 1, 0))
    affine = np.diag([-0.7, -0.9, 2.5, 1.0])
    affine[:3, 3] = 31.0, 42.5, 103.25
    image = kind(array, affine, header=kind.header_class(endianness=">"))
    image.set_data_dtype("i2")
    nibabel.save(image, tmp_path / "scan.nii")
    assert nibabel.load(tmp_path / "scan.nii").dataobj.dtype == np.dtype(">i2")
    assert_is(read_volumes(tmp_path)[0], scan)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)])
def test_units_of_length(tmp_path: Path, unit: str, factor: float):
    image = nibabel.Nifti1Image(np.ones((4, 4, 3), "i2"), RAS)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_volumes(tmp_path)[0].positions_mm, factor * np.arange(3))


def test_without_qform_and_sform_the_default_affine_holds(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 9, (4, 5, 3)).astype("u1")
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((1, 1, 2))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "scan.nii")
    expected = nibabel.load(tmp_path / "scan.nii").affine
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_allclose(volume.positions_mm, expected[2, 3] + 2 * np.arange(3))
    # nibabel's default affine has x from right to left flipped to radiological storage
    np.testing.assert_array_equal(values(volume), array.transpose(2, 1, 0)[:, ::-1])


def test_colour_becomes_luminance(tmp_path: Path):
    grey = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype("u1")
    colour = np.zeros(grey.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = grey
    nibabel.save(nibabel.Nifti1Image(colour, RAS), tmp_path / "scan.nii")
    (volume,) = read_volumes(tmp_path)
    assert volume.slice(0).pixels.dtype == np.uint8
    np.testing.assert_array_equal(values(volume), np.round(grey * np.float32(0.587)).transpose(2, 1, 0))


def test_64_bit_integers_become_float64(tmp_path: Path):
    array = np.arange(60, dtype="i8").reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(array, RAS, dtype="int64"), tmp_path / "scan.nii")
    one = read_volumes(tmp_path)[0].slice(1)
    assert one.pixels.dtype == np.float64
    np.testing.assert_array_equal(one.pixels, array[..., 1].T)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((3, 3, 3, 2, 2), "i2"), "5 dimensions"),
        (np.ones((3, 3, 3), "c8"), "complex"),
        (np.ones(3, "i2"), "1 dimensions"),
    ],
)
def test_what_is_no_scan_is_refused_in_a_sentence(tmp_path: Path, array: np.ndarray, reason: str):
    path = save(array, tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match=reason) as caught:
        read_volumes(path)
    assert caught.value.path == path


def test_extents_that_are_none(tmp_path: Path):
    path = save(np.ones((4, 4, 4), "i2"), tmp_path / "scan.nii")
    raw = bytearray(path.read_bytes())
    for extent, reason in ((-4, "negative|dimensions|damaged"), (0, "dimensions"), (32767, "cut short")):
        raw[46:48] = extent.to_bytes(2, "little", signed=True)
        path.write_bytes(raw)
        with pytest.raises(VolumeError, match=reason):
            read_volumes(path)


def test_a_compressed_file_that_announces_more_than_memory_holds(tmp_path: Path):
    raw = bytearray(save(np.ones((4, 4, 4), "i2"), tmp_path / "scan.nii").read_bytes())
    for place in (42, 44, 46):
        raw[place : place + 2] = (32767).to_bytes(2, "little")
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(raw))
    (volume,) = read_volumes(tmp_path / "scan.nii.gz")
    with pytest.raises(VolumeError, match="slice 0: "):
        volume.slice(0)


def test_a_flat_affine_is_refused(tmp_path: Path):
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), "i2"), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]
    image.to_filename(tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")
    raw[280:328] = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="three dimensions"):
        read_volumes(tmp_path)


def test_a_single_slice(tmp_path: Path):
    assert len(read_volumes(save(np.ones((5, 6, 1), "i2"), tmp_path / "flat.nii"))[0]) == 1
    assert len(read_volumes(save(np.ones((5, 6), "i2"), tmp_path / "flatter.nii"))[0]) == 1
    for name, axes in (("a.nii", AXIAL), ("b.nii", SAGITTAL)):
        with pytest.raises(VolumeError, match="7 x 1 pixels; one sagittal or coronal slice is no volume"):
            read_volumes(write_nifti(tmp_path / name, phantom((6, 7, 1)), axes))


@pytest.mark.parametrize("axes", [AXIAL, TRANSPOSED, CORONAL])
@pytest.mark.parametrize("missing", [1, 200])
def test_a_file_cut_short(tmp_path: Path, axes, missing: int):
    path = write_nifti(tmp_path / "scan.nii", phantom(), axes)
    path.write_bytes(path.read_bytes()[:-missing])
    (problem,) = discover([path]).problems
    assert problem.path == path
    assert "cut short" in problem.reason


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_compressed_file_cut_short_names_file_and_slice(tmp_path: Path, keep: float):
    path = write_nifti(tmp_path / "scan.nii.gz", phantom((20, 30, 30)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    (volume,) = read_volumes(path)
    with pytest.raises(VolumeError, match=r"scan.nii.gz: slice 3: .*damaged"):
        volume.slice(3)


def test_a_compressed_file_that_holds_too_little(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(path.read_bytes()[:-50]))
    (volume,) = read_volumes(tmp_path / "scan.nii.gz")
    with pytest.raises(VolumeError, match="slice 0: is cut short"):
        volume.slice(0)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 50, b"\0" * 400, b"\x1f\x8b\x08" + b"\0" * 50])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_is_not_nifti(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    found = discover([tmp_path])
    assert found.volumes == []
    assert [problem.path for problem in found.problems] == [tmp_path / name]


def test_a_pair_is_one_volume_whichever_file_is_named(tmp_path: Path):
    scan = phantom()
    write_nifti(tmp_path / "scan.img", scan, kind=nibabel.Nifti1Pair)
    found = discover([tmp_path])
    assert (len(found.volumes), found.problems, found.skipped) == (1, [], 1)
    assert_is(found.volumes[0], scan)
    (tmp_path / "scan.img").rename(tmp_path / "gone")
    assert [problem.path.name for problem in discover([tmp_path / "scan.hdr"]).problems] == ["scan.hdr"]


def test_analyze_is_refused_for_it_does_not_say_how_it_is_oriented(tmp_path: Path):
    nibabel.save(nibabel.AnalyzeImage(np.ones((3, 3, 3), "i2"), np.eye(4)), tmp_path / "scan.img")
    with pytest.raises(VolumeError, match="does not say how it is oriented"):
        read_volumes(tmp_path / "scan.img")


def test_ids_follow_the_content(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path, tmp_path / "elsewhere" / "other.nii")
    other = write_nifti(tmp_path / "second.nii", phantom(seed=1))
    ids = [read_volumes(one)[0].id for one in (path, tmp_path / "elsewhere" / "other.nii", other)]
    assert ids[0] == ids[1] != ids[2]


def test_slices_may_be_read_from_several_threads(tmp_path: Path):
    scan = phantom((40, 64, 64))
    path = write_nifti(tmp_path / "scan.nii.gz", scan, CORONAL)
    (volume,) = read_volumes(path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(volume.slice, list(range(40)) * 5))
    for index, one in zip(list(range(40)) * 5, found, strict=True):
        np.testing.assert_array_equal(one.pixels, scan.values[index])


@pytest.mark.parametrize("name", ["anatomical.nii", "functional.nii", "example4d.nii.gz", "standard.nii.gz"])
def test_examples_of_nibabel(name: str):
    path = Path(data_path) / name
    expected = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
    expected = np.atleast_3d(expected)[::-1, ::-1]  # RAS to LPS
    volumes = read_volumes(path)
    for protocol, volume in enumerate(volumes):
        block = expected[..., protocol] if expected.ndim == 4 else expected
        np.testing.assert_allclose(values(volume), block.transpose(2, 1, 0), rtol=1e-6)
