"""DICOM pixels: every encoding decodes to the values that were stored."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from slicevote_volumes import VolumeError, decode_instance, read_volumes

from tests.volumes.phantoms import (
    PATIENT,
    SAGITTAL,
    acquire,
    assert_is,
    enhanced,
    new_dataset,
    phantom,
    place,
    save,
    set_pixels,
    values,
    write_dicom,
)

COMPRESSED = [RLELossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless]


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, *COMPRESSED],
    ids=lambda syntax: syntax.name,
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_every_encoding_gives_the_truth(tmp_path: Path, syntax: str, dtype: str):
    scan = phantom((4, 16, 12), dtype)
    if syntax == JPEGLosslessSV1 and dtype == "int16":
        scan = phantom((4, 16, 12), "uint16")
    write_dicom(tmp_path, scan, syntax=syntax)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_32_bits(tmp_path: Path, dtype: str):
    scan = phantom(dtype=dtype)
    write_dicom(tmp_path, scan)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)
    assert volume.slice(0).pixels.dtype == np.dtype(dtype)


def test_deflated_data_sets(tmp_path: Path):
    scan = phantom()
    for path in write_dicom(tmp_path, scan):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.save_as(path, enforce_file_format=True)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


def test_float_pixels(tmp_path: Path):
    scan = phantom(dtype="float32")

    def edit(ds, plane):
        ds.FloatPixelData = ds.PixelData
        del ds.PixelData

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)
    assert volume.slice(0).pixels.dtype == np.float32


def test_bits_above_bits_stored_are_ignored(tmp_path: Path):
    scan = phantom(dtype="int16")  # within 12 bits

    def edit(ds, plane):
        stored = np.frombuffer(ds.PixelData, "u2")
        set_pixels(ds, (stored & 0x0FFF | 0x5000).astype("i2").reshape(ds.Rows, ds.Columns), bits_stored=12)

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


def test_rescale_is_passed_through_slice_by_slice(tmp_path: Path):
    scan = phantom()

    def edit(ds, plane):
        ds.RescaleSlope, ds.RescaleIntercept = str(plane + 1), "-1024"

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    for index, one in enumerate(volume.slices(range(len(volume)))):
        assert (one.rescale_slope, one.rescale_intercept) == (index + 1, -1024)
        assert one.pixels.dtype == np.int16
        np.testing.assert_array_equal(one.values(), scan.values[index] * (index + 1.0) - 1024)
        assert one.values().dtype == np.float32


def test_a_reformatted_series_with_rescale_slice_by_slice(tmp_path: Path):
    scan = phantom()

    def edit(ds, plane):
        ds.RescaleSlope, ds.RescaleIntercept = str(plane + 1), "0"

    write_dicom(tmp_path, scan, SAGITTAL, edit=edit)
    (volume,) = read_volumes(tmp_path)
    slopes = np.arange(1, scan.values.shape[2] + 1)
    np.testing.assert_array_equal(values(volume), scan.values * slopes)


def test_a_slope_of_zero_means_none(tmp_path: Path):
    scan = phantom()

    def edit(ds, plane):
        ds.RescaleSlope, ds.RescaleIntercept = "0", "5"

    write_dicom(tmp_path, scan, edit=edit)
    assert_is(read_volumes(tmp_path)[0], scan)


def test_modality_lut_takes_the_place_of_slope_and_intercept(tmp_path: Path):
    scan = phantom(dtype="uint8")
    table = np.arange(256, dtype="u2") * 3 + 1

    def edit(ds, plane):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [256, 0, 16])
        item.ModalityLUTType = "US"
        item.add_new("LUTData", "OW", table.tobytes())
        ds.ModalityLUTSequence = DicomSequence([item])

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), table[scan.values])


@pytest.mark.parametrize(
    ("dtype", "modality", "inverted"),
    [("uint16", "MR", lambda v: 65535 - v), ("int16", "MR", lambda v: -1 - v), ("int16", "CT", lambda v: v)],
)
def test_monochrome1_is_inverted_unless_the_values_are_hounsfield(tmp_path: Path, dtype, modality, inverted):
    scan = phantom(dtype=dtype)

    def edit(ds, plane):
        ds.PhotometricInterpretation = "MONOCHROME1"

    write_dicom(tmp_path, scan, modality=modality, edit=edit)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), inverted(scan.values.astype(np.int64)))


def test_monochrome1_of_12_bits_is_inverted_within_them(tmp_path: Path):
    scan = phantom(dtype="uint16")

    def edit(ds, plane):
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.BitsStored, ds.HighBit = 12, 11

    write_dicom(tmp_path, scan, edit=edit)
    np.testing.assert_array_equal(values(read_volumes(tmp_path)[0]), 4095 - scan.values.astype(np.int64))


def test_colour_becomes_luminance(tmp_path: Path):
    scan = phantom((3, 6, 4), "uint8")

    def edit(ds, plane):
        grey = np.frombuffer(ds.PixelData, "u1")[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)
        set_pixels(ds, np.stack([grey, grey // 2, grey * 0], axis=-1))
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0

    write_dicom(tmp_path, scan, edit=edit)
    expected = np.round(0.299 * scan.values + 0.587 * (scan.values // 2))
    np.testing.assert_allclose(values(read_volumes(tmp_path)[0]), expected, atol=1)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEG2000.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "693_J2KI.dcm",
        "image_dfl.dcm",
        "SC_rgb_small_odd.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_rle.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_palette.dcm",
    ],
)
def test_files_of_real_scanners_decode_as_pydicom_decodes_them(name: str):
    path = Path(str(get_testdata_file(name, download=False)))
    ds = pydicom.dcmread(path)
    expected = ds.pixel_array
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        expected = pydicom.pixels.apply_color_lut(expected, ds)
    if expected.ndim == 3:
        expected = np.round(expected[..., :3] @ [0.299, 0.587, 0.114])
    (volume,) = read_volumes(path)
    assert len(volume) == 1
    np.testing.assert_allclose(volume.slice(0).pixels, expected, atol=1 if ds.SamplesPerPixel == 3 else 0)


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "no_meta.dcm"])
def test_files_without_preamble_or_transfer_syntax_are_read_or_skipped(name: str):
    path = Path(str(get_testdata_file(name, download=False)))
    if "PixelData" in pydicom.dcmread(path, force=True):
        assert read_volumes(path)[0].slice(0).pixels.any()
    else:
        with pytest.raises(VolumeError):
            read_volumes(path)


def test_what_no_decoder_can_decode_is_said():
    path = Path(str(get_testdata_file("JPGExtended.dcm", download=False)))  # 12 bits
    (volume,) = read_volumes(path)
    with pytest.raises(VolumeError, match=r"JPGExtended.dcm: slice 0: pixel data cannot be decoded, frame 0, JPEG Ext"):
        volume.slice(0)


def test_enhanced_multi_frame(tmp_path: Path):
    scan = phantom((6, 10, 8))
    path = save(enhanced(scan), tmp_path / "enhanced")
    (volume,) = read_volumes(tmp_path)
    assert volume.source == str(path)
    assert volume.pixel_spacing_mm == pytest.approx((0.9, 0.7))
    np.testing.assert_array_equal(values(volume), scan.values * 2.0 - 10)
    np.testing.assert_allclose(volume.positions_mm, scan.positions, atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_enhanced_multi_frame(tmp_path: Path, syntax: str):
    scan = phantom((5, 16, 12))
    save(enhanced(scan), tmp_path / "enhanced", syntax)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), scan.values * 2.0 - 10)


def test_enhanced_multi_frame_is_split_where_positions_repeat(tmp_path: Path):
    scan = phantom((6, 10, 8))

    def edit(groups: Dataset, plane: int):
        echo = Dataset()
        echo.EffectiveEchoTime = 10.5 if plane < 3 else 80.0
        groups.MREchoSequence = DicomSequence([echo])
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        position[2] = float(position[2]) + (7.5 if plane >= 3 else 0)

    save(enhanced(scan, edit=edit), tmp_path / "enhanced")
    volumes = read_volumes(tmp_path)
    assert [volume.labels["echo_time"] for volume in volumes] == ["10.5", "80"]
    assert [len(volume) for volume in volumes] == [3, 3]


def test_multi_frame_without_functional_groups_keeps_the_order_of_its_frames(tmp_path: Path):
    scan = phantom((5, 6, 8))
    ds = new_dataset(scan.values[0])
    set_pixels(ds, scan.values)
    ds.NumberOfFrames, ds.SpacingBetweenSlices = 5, "1.5"
    save(ds, tmp_path / "frames.dcm")
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), scan.values)
    assert volume.positions_mm == (0.0, 1.5, 3.0, 4.5, 6.0)


@pytest.mark.parametrize("missing", [1, 100])
def test_pixels_cut_short_name_file_and_slice(tmp_path: Path, missing: int):
    paths = write_dicom(tmp_path, phantom())
    paths[2].write_bytes(paths[2].read_bytes()[:-missing])
    (volume,) = read_volumes(tmp_path)
    with pytest.raises(VolumeError, match=f"{paths[2].name}: slice 2: pixel data are cut short") as caught:
        volume.slice(2)
    assert caught.value.path == paths[2]
    assert volume.slice(1).pixels.any()


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_compressed_pixels_cut_short(tmp_path: Path, syntax: str):
    paths = write_dicom(tmp_path, phantom((3, 64, 64), "uint16"), syntax=syntax)
    paths[1].write_bytes(paths[1].read_bytes()[:-3000])
    (volume,) = read_volumes(tmp_path)
    with pytest.raises(VolumeError, match="slice 1: pixel data"):
        volume.slice(1)


def test_a_file_that_vanishes(tmp_path: Path):
    paths = write_dicom(tmp_path, phantom())
    (volume,) = read_volumes(tmp_path)
    paths[0].unlink()
    with pytest.raises(VolumeError, match="slice 0 cannot be read") as caught:
        volume.slice(0)
    assert PATIENT not in str(caught.value)


def bytes_of(ds) -> bytes:
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_decode_instance_refuses_what_is_no_transversal_image_and_says_what_to_do():
    scan = phantom()
    block, affine = acquire(scan, SAGITTAL)
    ds = new_dataset(block[0])
    place(ds, affine, 0)
    with pytest.raises(VolumeError, match=r"^is not transversal; .* send decoded pixels"):
        decode_instance(bytes_of(ds), 4)
    with pytest.raises(VolumeError, match=r"6 frames; send each as decoded pixels"):
        decode_instance(bytes_of(enhanced(scan)), 0)
    with pytest.raises(VolumeError, match="no DICOM image"):
        decode_instance(b"not DICOM at all", 0)
    with pytest.raises(VolumeError, match="no DICOM image"):
        decode_instance(b"", 0)


def test_decode_instance_of_damaged_files_fails_cleanly():
    whole = bytes_of(new_dataset(phantom().values[0]))
    for length in range(0, len(whole), 7):
        with pytest.raises(VolumeError):
            decode_instance(whole[:length], 0)
    generator = np.random.default_rng(1)
    reasons = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place_ in generator.integers(0, len(whole) - scan_bytes(), 4):
            damaged[place_] = generator.integers(256)
        try:
            decode_instance(bytes(damaged), 0)
        except VolumeError as error:
            reasons.append(str(error))
    assert reasons
    assert not [reason for reason in reasons if PATIENT in reason or "Doe" in reason]


def scan_bytes() -> int:
    return phantom().values[0].nbytes


def test_decode_instance_reads_every_encoding(tmp_path: Path):
    scan = phantom((2, 16, 12), "uint16")
    for syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian, *COMPRESSED):
        paths = write_dicom(tmp_path / syntax, scan, syntax=syntax)
        decoded = decode_instance(paths[1].read_bytes(), 1)
        np.testing.assert_array_equal(decoded.pixels, scan.values[1])
        assert decoded.sop_instance_uid.endswith(".2")


def test_decode_instance_does_not_inflate_a_bomb():
    ds = new_dataset(np.zeros((64, 64), "u2"))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(VolumeError, match="deflated"):
        decode_instance(bytes_of(ds), 0)
    ds = new_dataset(np.zeros((64, 64), "u2"))
    ds.Rows = 60000
    with pytest.raises(VolumeError, match="60000 rows"):
        decode_instance(bytes_of(ds), 0)
