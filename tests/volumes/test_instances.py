"""DICOM instances: the same volumes from paths, bytes and streams."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from slicevote_volumes import Instance, VolumeError, decode_instance, discover, discover_instances

from tests.volumes.phantoms import (
    AXIAL,
    SAGITTAL,
    SERIES,
    Axes,
    assert_is,
    enhanced,
    new_dataset,
    phantom,
    save,
    values,
    write_dicom,
)


def opener(path: Path) -> Callable[[], BytesIO]:
    return lambda: BytesIO(path.read_bytes())


WAYS: dict[str, Callable[[Path], Instance]] = {
    "path": Instance.from_path,
    "bytes": lambda path: Instance.from_bytes(path.read_bytes()),
    "stream": lambda path: Instance.from_stream(BytesIO(path.read_bytes()), path.name),
    "opener": lambda path: Instance(opener(path), f"https://pacs.example/studies/1/instances/{path.name}"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_a_series_is_the_same_from_paths_bytes_and_streams(tmp_path: Path, axes: Axes, way):
    def echo(ds, plane):
        ds.EchoTime = "5"

    def second_echo(ds, plane):
        ds.EchoTime = "80"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.{plane}.2"

    one, two = phantom(seed=1), phantom(seed=2)
    write_dicom(tmp_path / "1", one, axes, edit=echo)
    write_dicom(tmp_path / "2", two, axes, edit=second_echo)
    save(enhanced(phantom(seed=3)), tmp_path / "3" / "enhanced")
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    expected = discover([tmp_path])
    found = discover_instances(map(way, sorted(path for path in tmp_path.rglob("*") if path.is_file())))
    assert (found.problems, found.skipped) == ([], 1)
    assert [volume.id for volume in found.volumes] == [volume.id for volume in expected.volumes]
    for volume, same in zip(found.volumes, expected.volumes, strict=True):
        np.testing.assert_array_equal(values(volume), values(same))
        assert volume.positions_mm == same.positions_mm
        assert (volume.labels, volume.patient_id, volume.modality) == (same.labels, same.patient_id, same.modality)
        assert [one.sop_instance_uid for one in volume.slices(range(3))] == [
            one.sop_instance_uid for one in same.slices(range(3))
        ]
    assert_is(found.volumes[0], one)
    assert_is(found.volumes[1], two)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_series_without_any_uid_has_the_same_id(tmp_path: Path, way):
    def edit(ds, plane):
        del ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.SOPInstanceUID

    paths = write_dicom(tmp_path, phantom(), edit=edit)
    (expected,) = discover([tmp_path]).volumes
    (volume,) = discover_instances(map(way, paths)).volumes
    assert volume.id == expected.id
    assert_is(volume, phantom())


def test_a_volume_says_where_it_comes_from(tmp_path: Path):
    paths = write_dicom(tmp_path, phantom())
    sources = {name: discover_instances(map(way, paths)).volumes[0].source for name, way in WAYS.items()}
    assert sources["path"] == str(tmp_path)
    assert sources["bytes"] == ""
    assert sources["opener"] == "https://pacs.example/studies/1/instances"


def test_nothing_is_kept_of_an_instance_that_can_be_opened_again(tmp_path: Path):
    paths = write_dicom(tmp_path, phantom())
    opened: list[Path] = []

    def counting(path: Path) -> Instance:
        def open_it() -> BytesIO:
            opened.append(path)
            return BytesIO(path.read_bytes())

        return Instance(open_it)

    (volume,) = discover_instances(map(counting, paths)).volumes
    assert opened == paths
    volume.slice(2)
    assert opened[len(paths) :] == [paths[2]]


def test_errors_name_the_instance(tmp_path: Path):
    def fail() -> BytesIO:
        raise ConnectionResetError(104, "Connection reset by peer")

    data = write_dicom(tmp_path, phantom())[0].read_bytes()
    cut, gone = Instance.from_bytes(data[:300], "instance 7"), Instance(fail, "https://pacs.example/1")
    found = discover_instances([cut, gone])
    assert [problem.path for problem in found.problems] == [None, None]
    assert found.problems[0].reason.startswith("instance 7: ")
    assert found.problems[1].reason == "https://pacs.example/1: cannot be read (Connection reset by peer)"
    (volume,) = discover_instances([Instance.from_bytes(data[:-50], "instance 7")]).volumes
    with pytest.raises(VolumeError, match=r"^instance 7: slice 0: pixel data are cut short"):
        volume.slice(0)


def test_a_slice_sent_alone_is_read_in_the_same_way(tmp_path: Path):
    """Also where the header is damaged behind its first kilobytes, or is longer than a buffer."""
    data = write_dicom(tmp_path, phantom((1, 4, 4)))[0].read_bytes()
    (volume,) = discover_instances([Instance.from_bytes(data)]).volumes
    np.testing.assert_array_equal(decode_instance(data, 0).pixels, volume.slice(0).pixels)
    for damaged in (data[:200], data[: len(data) // 2], b"", b"no DICOM" * 100):
        found = discover_instances([Instance.from_bytes(damaged)])
        assert found.volumes == []
        with pytest.raises(VolumeError) as caught:
            decode_instance(damaged, 0)
        assert found.skipped == 1 or caught.value.reason == found.problems[0].reason


def test_what_is_no_scan_is_said_when_it_is_sent_as_a_slice(tmp_path: Path):
    ds = new_dataset(phantom().values[0], modality="SEG")
    data = save(ds, tmp_path / "seg.dcm").read_bytes()
    with pytest.raises(VolumeError, match="no DICOM image: is a segmentation; send"):
        decode_instance(data, 0)
    assert discover_instances([Instance.from_bytes(data)]).skipped == 1
