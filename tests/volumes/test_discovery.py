"""Discovery of volumes in files and folders."""

import os
from pathlib import Path

import pytest
from slicevote_volumes import VolumeError, discover, read_volumes

from tests.volumes.phantoms import phantom, write_dicom, write_nifti


def test_volumes_come_in_the_order_of_their_files(tmp_path: Path):
    for number, name in enumerate(["b.nii", "a.nii.gz", "c.nii"]):
        write_nifti(tmp_path / name, phantom(seed=number))
    write_dicom(tmp_path / "ab", phantom(seed=9))
    given = [tmp_path / "c.nii", tmp_path]
    assert [Path(volume.source).name for volume in discover(given).volumes] == ["c.nii", "a.nii.gz", "b.nii", "ab"]


def test_a_file_given_twice_is_one_volume(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    assert len(discover([path, path, tmp_path]).volumes) == 1


def test_what_does_not_exist_is_a_problem(tmp_path: Path):
    found = discover([tmp_path / "nowhere"])
    assert [(problem.path, problem.reason) for problem in found.problems] == [(tmp_path / "nowhere", "does not exist")]
    with pytest.raises(VolumeError, match="nowhere: does not exist"):
        read_volumes(tmp_path / "nowhere")


def test_a_folder_without_scans(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text("text")
    with pytest.raises(VolumeError, match="holds no scan: 3 files, none of them"):
        read_volumes(tmp_path)


def test_one_bad_file_does_not_stop_the_rest(tmp_path: Path):
    (tmp_path / "a.nii").write_bytes(b"bad")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0\xff\xff\xff\xff" + b"\x99" * 300)
    write_nifti(tmp_path / "c.nii", phantom())
    found = discover([tmp_path])
    assert len(found.volumes) == 1
    assert tmp_path / "a.nii" in [problem.path for problem in found.problems]
    assert len(read_volumes(tmp_path)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_problem(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    path.chmod(0)
    assert [problem.path for problem in discover([tmp_path]).problems] == [path]


def test_links_that_lead_nowhere_are_skipped(tmp_path: Path):
    (tmp_path / "link.dcm").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = discover([tmp_path])
    assert (found.volumes, found.problems, found.skipped) == ([], [], 1)
