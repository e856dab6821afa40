"""DICOM series: which frames make which volume."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from slicevote_volumes import VolumeError, decode_instance, discover, read_volumes

from tests.volumes.phantoms import (
    CORONAL,
    PATIENT,
    SAGITTAL,
    SERIES,
    STUDY,
    acquire,
    assert_is,
    new_dataset,
    phantom,
    place,
    save,
    set_pixels,
    turn,
    values,
    write_dicom,
)


def test_a_series_has_what_identifies_it_and_nothing_that_identifies_the_patient(tmp_path: Path):
    paths = write_dicom(tmp_path / "a", phantom(), modality="CT")
    (volume,) = read_volumes(tmp_path)
    assert (volume.modality, volume.study_instance_uid, volume.series_instance_uid) == ("CT", STUDY, SERIES)
    assert dict(volume.labels) == {"modality": "CT", "body_part": "knee"}
    assert volume.source == str(tmp_path / "a")
    assert volume.paths == tuple(paths)
    assert volume.patient_id == PATIENT
    assert volume.slice(2).sop_instance_uid == f"{SERIES}.3"
    assert PATIENT not in repr(volume)
    assert "Doe" not in repr(volume) + str(volume.labels)


def test_a_tree_of_many_series_with_files_of_all_kinds(tmp_path: Path):
    one, two = phantom(seed=1), phantom((4, 7, 9), seed=2)
    paths = write_dicom(tmp_path / "deep" / "er", one, suffix="")
    write_dicom(tmp_path / "b", two, series=SERIES + ".9", syntax=pydicom.uid.ImplicitVRLittleEndian)
    (tmp_path / "other").mkdir()
    for path in paths[3:]:
        shutil.move(path, tmp_path / "other")  # one series in two folders
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").touch()
    (tmp_path / "DICOMDIR").write_bytes(paths[0].read_bytes())
    (tmp_path / "._0.dcm").write_bytes(b"\0" * 200)
    for name in ("test-SR.dcm", "rtstruct.dcm", "rtplan.dcm", "rtdose.dcm"):
        shutil.copy(str(get_testdata_file(name, download=False)), tmp_path / name)
    seen: list[Path] = []
    found = discover([tmp_path], on_file=seen.append)
    assert found.problems == []
    assert found.skipped == 8
    assert len(seen) == len(set(seen)) == 18
    assert {volume.series_instance_uid: volume for volume in found.volumes}.keys() == {SERIES, SERIES + ".9"}
    for volume in found.volumes:
        assert_is(volume, one if volume.series_instance_uid == SERIES else two)


def test_copies_of_an_image_are_dropped(tmp_path: Path):
    scan = phantom()
    write_dicom(tmp_path / "a", scan)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (volume,) = read_volumes(tmp_path)
    assert_is(volume, scan)


def test_ids_do_not_depend_on_the_place_or_the_names(tmp_path: Path):
    write_dicom(tmp_path / "a", phantom())
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    for index, path in enumerate(sorted((tmp_path / "b" / "c").iterdir())):
        path.rename(path.with_name(f"z{9 - index}"))
    (a,), (b,) = read_volumes(tmp_path / "a"), read_volumes(tmp_path / "b")
    assert a.id == b.id == "2a953df3-7227-5602-955c-910c01223cc9"
    write_dicom(tmp_path / "d", phantom(), series=SERIES + ".1")
    assert read_volumes(tmp_path / "d")[0].id != a.id


def test_a_series_without_uids_still_has_an_id(tmp_path: Path):
    def edit(ds, plane):
        del ds.SeriesInstanceUID, ds.StudyInstanceUID

    write_dicom(tmp_path / "a", phantom(), edit=edit)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (a,), (b,) = read_volumes(tmp_path / "a"), read_volumes(tmp_path / "b")
    assert a.id == b.id
    assert len(a) == 6


def test_localizers_are_split_by_orientation(tmp_path: Path):
    scan = phantom((8, 8, 8))
    for number, axes in enumerate([SAGITTAL, CORONAL]):

        def edit(ds, plane, number=number):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{number}.{plane}"

        write_dicom(tmp_path / str(number), scan, axes, edit=edit)
    write_dicom(tmp_path / "axial", scan)
    volumes = read_volumes(tmp_path)
    assert len({volume.id for volume in volumes}) == 3
    assert [dict(volume.split) for volume in volumes] == [
        {"orientation": "sagittal"}, {"orientation": "coronal"}, {"orientation": "axial"},
    ]  # fmt: skip
    for volume in volumes:
        assert_is(volume, scan)


def test_two_orientations_of_one_plane_are_told_apart(tmp_path: Path):
    for degrees in (0, 20):

        def edit(ds, plane, degrees=degrees):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{degrees}.{plane}"

        write_dicom(tmp_path / str(degrees), phantom(), rotation=turn(0, degrees), edit=edit)
    assert [dict(volume.split) for volume in read_volumes(tmp_path)] == [
        {"orientation": "axial (1,0,0,0,1,0)"}, {"orientation": "axial (1,0,0,0,0.94,0.34)"},
    ]  # fmt: skip


def test_choices_can_be_told_apart_and_tell_nothing_of_the_patient(tmp_path: Path):
    for echo, number in ((5, "4"), (80, "4"), (5, "no number")):

        def edit(ds, plane, echo=echo, number=number):
            ds.EchoTime = str(echo)
            uid = f"{SERIES}.{len(number)}"
            ds.SeriesInstanceUID, ds.SeriesDescription, ds.ProtocolName = uid, "Doe knee", "for Dr Smith"
            ds.add(RawDataElement(Tag("SeriesNumber"), "IS", len(number), number.encode(), 0, False, True))
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{echo}.{plane}"

        write_dicom(tmp_path / f"{echo} {number}", phantom(), edit=edit)
    volumes = read_volumes(tmp_path)
    assert sorted(volume.description() for volume in volumes) == [
        "MR, 6 x 10 x 8, 2.5 x 0.9 x 0.7 mm",
        "MR, series 4, 6 x 10 x 8, 2.5 x 0.9 x 0.7 mm, echo time 5",
        "MR, series 4, 6 x 10 x 8, 2.5 x 0.9 x 0.7 mm, echo time 80",
    ]
    assert {volume.series_number for volume in volumes} == {4, None}


@pytest.mark.parametrize(
    ("label", "keyword", "first", "second", "name"),
    [
        ("echo_time", "EchoTime", "4.6", "80", ("4.6", "80")),
        ("echo_number", "EchoNumbers", "1", "2", ("1", "2")),
        ("temporal_position", "TemporalPositionIdentifier", "1", "2", ("1", "2")),
        ("b_value", "DiffusionBValue", 0.0, 800.0, ("0", "800")),
        ("acquisition_number", "AcquisitionNumber", "1", "2", ("1", "2")),
        ("image_type", "ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"],
         ("ORIGINAL/PRIMARY/M", "ORIGINAL/PRIMARY/P")),
    ],
)  # fmt: skip
def test_repeating_positions_are_split(tmp_path: Path, label, keyword, first, second, name):
    one, two = phantom(seed=1), phantom(seed=2)
    for scan, value, part in ((one, first, "a"), (two, second, "b")):

        def edit(ds, plane, value=value, part=part):
            setattr(ds, keyword, value)
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{ord(part)}.{plane}"

        write_dicom(tmp_path / part, scan, edit=edit)
    found = discover([tmp_path])
    assert found.problems == []
    assert [volume.labels[label] for volume in found.volumes] == list(name)
    assert len({volume.id for volume in found.volumes}) == 2
    assert_is(found.volumes[0], one)
    assert_is(found.volumes[1], two)


def test_echoes_of_several_b_values_are_split_by_both(tmp_path: Path):
    for echo in (1, 2):
        for b_value in (0, 50):

            def edit(ds, plane, echo=echo, b_value=b_value):
                ds.EchoTime, ds.DiffusionBValue = str(10 * echo), float(b_value)
                uid = f"{SERIES}.{echo}.{b_value}.{plane}"
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid

            write_dicom(tmp_path / f"{echo}-{b_value}", phantom(seed=10 * echo + b_value), edit=edit)
    volumes = read_volumes(tmp_path)
    assert sorted((volume.labels["echo_time"], volume.labels["b_value"]) for volume in volumes) == [
        ("10", "0"), ("10", "50"), ("20", "0"), ("20", "50"),
    ]  # fmt: skip
    assert {"echo time": "20", "b-value": "50"} in [dict(volume.split) for volume in volumes]
    for volume in volumes:
        seed = int(volume.labels["echo_time"]) + int(volume.labels["b_value"])
        assert_is(volume, phantom(seed=seed))


def test_siemens_hides_its_b_value(tmp_path: Path):
    for b_value in (0, 400):

        def edit(ds, plane, b_value=b_value):
            block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
            block.add_new(0x0C, "IS", str(b_value))
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{b_value}.{plane}"

        write_dicom(tmp_path / str(b_value), phantom(seed=b_value), edit=edit)
    assert [volume.labels["b_value"] for volume in read_volumes(tmp_path)] == ["0", "400"]


def test_repeating_positions_that_nothing_tells_apart_are_a_problem(tmp_path: Path):
    for part in "ab":

        def edit(ds, plane, part=part):
            ds.AcquisitionNumber = str(plane + 100 * ord(part))  # differs from slice to slice and means nothing
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{ord(part)}.{plane}"

        write_dicom(tmp_path / part, phantom(), edit=edit)
    found = discover([tmp_path])
    assert found.volumes == []
    (problem,) = found.problems
    assert "positions repeat" in problem.reason
    assert problem.path.parent.parent == tmp_path
    with pytest.raises(VolumeError, match="positions repeat"):
        read_volumes(tmp_path)


def test_mixed_sizes_are_a_problem_that_names_the_odd_file(tmp_path: Path):
    def edit(ds, plane):
        if plane == 3:
            set_pixels(ds, np.zeros((12, 8), "i2"))

    paths = write_dicom(tmp_path, phantom(), edit=edit)
    found = discover([tmp_path])
    assert found.volumes == []
    assert [(problem.path, problem.reason[:17]) for problem in found.problems] == [(paths[3], "has 12 x 8 pixels")]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [({"SpacingBetweenSlices": "3.5", "SliceThickness": "2"}, 3.5), ({"SliceThickness": "2"}, 2.0), ({}, 1.0)],
)
def test_without_geometry_the_instance_number_orders(tmp_path: Path, spacing: dict, expected: float):
    scan = phantom()

    def edit(ds, plane):
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.SliceThickness
        for keyword, value in spacing.items():
            setattr(ds, keyword, value)

    write_dicom(tmp_path, scan, edit=edit)
    (volume,) = read_volumes(tmp_path)
    np.testing.assert_array_equal(values(volume), scan.values)
    np.testing.assert_allclose(volume.positions_mm, expected * np.arange(6))


def test_an_image_without_pixels_is_a_problem(tmp_path: Path):
    def edit(ds, plane):
        if plane == 2:
            del ds.PixelData

    paths = write_dicom(tmp_path, phantom(), edit=edit)
    found = discover([tmp_path])
    assert [(problem.path, problem.reason) for problem in found.problems] == [(paths[2], "has no pixel data")]
    assert [len(volume) for volume in found.volumes] == [5]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("ImagePositionPatient", b"1\\2\\Doe^Jane"), ("ImageOrientationPatient", b"1\\0\\0"), ("RescaleSlope", b"nan ")],
)
def test_a_senseless_element_is_named_and_its_value_is_not(tmp_path: Path, keyword: str, value: bytes):
    paths = write_dicom(tmp_path, phantom((1, 4, 4)))
    ds = pydicom.dcmread(paths[0])
    if keyword not in ds:
        setattr(ds, keyword, "1")
    tag = ds[keyword].tag
    ds.add(pydicom.dataelem.RawDataElement(tag, "DS", len(value), value + b" " * (len(value) % 2), 0, False, True))
    ds.save_as(paths[0])
    (problem,) = discover([tmp_path]).problems
    assert keyword in problem.reason
    assert "Doe" not in problem.reason


def test_a_damaged_header_tells_nothing_of_the_patient(tmp_path: Path):
    """In a process of its own, for warnings are turned off for a process and pytest turns them on again."""
    path = save(new_dataset(phantom().values[0]), tmp_path / "whole.dcm")
    whole = bytearray(path.read_bytes())
    for number, place_ in enumerate(range(132, len(whole) - 200, 5)):
        damaged = whole.copy()
        damaged[place_] ^= 0x55
        (tmp_path / f"{number}.dcm").write_bytes(damaged)
        (tmp_path / f"{number}-cut.dcm").write_bytes(whole[:place_])
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG)\n"
        "from pathlib import Path; from slicevote_volumes import discover, decode_instance, VolumeError\n"
        "found = discover([Path(sys.argv[1])]); print(found.problems, found.volumes)\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: decode_instance(path.read_bytes(), 0)\n"
        "    except VolumeError: logging.exception('failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" in done.stderr
    for secret in ("PATIENT", "Doe", "1970", "Smith"):
        assert secret not in done.stdout + done.stderr


def test_a_single_sagittal_slice_makes_no_volume(tmp_path: Path):
    block, affine = acquire(phantom(), SAGITTAL)
    ds = new_dataset(block[0])
    place(ds, affine, 0)
    path = save(ds, tmp_path / "one.dcm")
    (problem,) = discover([path]).problems
    assert problem.path == path
    assert "one sagittal or coronal slice is no volume" in problem.reason


def test_a_single_axial_file(tmp_path: Path):
    scan = phantom()
    paths = write_dicom(tmp_path, scan)
    (volume,) = read_volumes(paths[4])
    np.testing.assert_array_equal(values(volume)[0], scan.values[4])
    np.testing.assert_allclose(volume.positions_mm, scan.positions[4:5])
    assert volume.source == str(paths[4])


def test_a_header_longer_than_is_read_at_first(tmp_path: Path):
    scan = phantom()

    def edit(ds, plane):
        block = ds.private_block(0x0009, "LONG", create=True)
        block.add_new(0x01, "OB", b"\1" * 200_000)

    write_dicom(tmp_path, scan, edit=edit)
    assert_is(read_volumes(tmp_path)[0], scan)


def with_long_sequence(ds, plane: int = 0) -> None:
    """A sequence of undefined length, as enhanced objects have them, longer than a buffer."""
    items = []
    for _ in range(40):
        item = Dataset()
        item.TextValue, item.is_undefined_length_sequence_item = "x" * 2000, True
        items.append(item)
    ds.ReferencedImageSequence = DicomSequence(items)
    ds["ReferencedImageSequence"].is_undefined_length = True


def test_a_header_that_ends_its_first_buffer_inside_a_sequence(tmp_path: Path):
    scan = phantom()
    write_dicom(tmp_path, scan, edit=with_long_sequence)
    assert_is(read_volumes(tmp_path)[0], scan)


def test_an_instance_that_ends_inside_a_sequence_is_damaged(tmp_path: Path):
    ds = new_dataset(phantom().values[0])
    with_long_sequence(ds)
    path = save(ds, tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes()[:4000])
    for read in (read_volumes, lambda path: decode_instance(path.read_bytes(), 0)):
        with pytest.raises(VolumeError, match="the DICOM header is damaged"):
            read(path)


def test_a_modality_given_overrides_the_files(tmp_path: Path):
    write_dicom(tmp_path, phantom())
    (volume,) = read_volumes(tmp_path, modality="PT")
    assert (volume.modality, volume.labels["modality"]) == ("PT", "PT")


def test_ids_do_not_depend_on_a_given_modality(tmp_path: Path):
    write_dicom(tmp_path, phantom())
    assert read_volumes(tmp_path)[0].id == read_volumes(tmp_path, modality="PT")[0].id
