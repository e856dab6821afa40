"""Failures: damaged data are errors, and our own bugs surface with their trace."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import RLELossless
from slicevote_volumes import VolumeError, decode_instance, discover, read_volumes
from slicevote_volumes.errors import DamagedError, guarded

from tests.volumes.phantoms import SAGITTAL, phantom, write_dicom, write_nifti


def broken(*args: object, **kwargs: object) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    "helper",
    [
        "dicom.header._layout",
        "dicom.header.frames_of",
        "dicom.header.text",
        "dicom.frames.split_values",
        "dicom.elements.raw_text",
        "dicom.series.split_frames",
        "dicom.series.transversal",
        "nifti._voxels",
        "nifti.lps_from_ras",
        "dicom.series.volume_id",
    ],
)
def test_a_bug_of_ours_in_reading_headers_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str):
    for part in "ab":  # positions repeat

        def edit(ds, plane, part=part):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{ord(part)}.{plane}"

        write_dicom(tmp_path / part, phantom(), edit=edit)
    write_dicom(tmp_path / "other", phantom(), series="1.2.3")
    write_nifti(tmp_path / "scan.nii.gz", phantom())
    monkeypatch.setattr(f"slicevote_volumes.{helper}", broken)
    with pytest.raises(KeyError, match="a bug"):
        discover([tmp_path])


@pytest.mark.parametrize(
    ("helper", "name"),
    [
        ("dicom.pixels._plain", "dicom"),
        ("dicom.slices.read_stored", "sagittal"),
        ("dicom.pixels._options", "compressed"),
        ("dicom.pixels._DECODER._running", "compressed"),
        ("nifti._Voxels.read", "scan.nii.gz"),
        ("nifti._Voxels._open", "scan.nii"),
        ("nifti._pixels", "scan.nii"),
    ],
)
def test_a_bug_of_ours_in_decoding_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str, name: str):
    write_dicom(tmp_path / "dicom", phantom())
    write_dicom(tmp_path / "sagittal", phantom(), SAGITTAL)
    write_dicom(tmp_path / "compressed", phantom(), syntax=RLELossless)
    write_nifti(tmp_path / "scan.nii.gz", phantom())
    write_nifti(tmp_path / "scan.nii", phantom())
    (volume,) = read_volumes(tmp_path / name)
    monkeypatch.setattr(f"slicevote_volumes.{helper}", broken)
    with pytest.raises(KeyError, match="a bug"):
        volume.slice(0)


def test_a_bug_of_ours_surfaces_from_a_slice_sent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_dicom(tmp_path, phantom())[0].read_bytes()
    monkeypatch.setattr("slicevote_volumes.dicom.slices.transversal", broken)
    with pytest.raises(KeyError, match="a bug"):
        decode_instance(data, 0)


def test_what_a_library_raises_is_hidden():
    for error in (KeyError("Doe^Jane"), OSError("Doe^Jane"), MemoryError()):
        expected = rf"^the header is damaged \({type(error).__name__}\)$"
        with pytest.raises(DamagedError, match=expected), guarded("the header is damaged"):
            raise error
    with pytest.raises(FileNotFoundError), guarded("the header is damaged"):
        Path("/nowhere/at/all").read_bytes()


@pytest.mark.parametrize("position", ["1e300", "-1e308"])
def test_positions_that_overflow_are_a_problem(tmp_path: Path, position: str):
    def edit(ds, plane):
        if plane == 2:
            ds.ImagePositionPatient = ["0", "0", position]

    paths = write_dicom(tmp_path, phantom(), edit=edit)
    found = discover([tmp_path])
    if found.volumes:
        assert np.isfinite(found.volumes[0].positions_mm).all()
    else:
        assert found.problems[0].path in paths


def test_a_sequence_where_text_belongs_is_a_problem(tmp_path: Path):
    from pydicom import dcmread
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    item.PatientName = "Doe^Jane"
    path = write_dicom(tmp_path, phantom((1, 4, 4)))[0]
    for tag, reason in ((0x00100020, "sequence instead of text"), (0x00280030, "sequence instead of text")):
        ds = dcmread(path)
        element = DataElement(tag, "SQ", Sequence([item]))
        element.is_undefined_length = True
        ds[tag] = element
        other = tmp_path / "other" / path.name
        other.parent.mkdir(exist_ok=True)
        ds.save_as(other)
        with pytest.raises(VolumeError, match=reason) as caught:
            read_volumes(other)
        assert "Doe" not in str(caught.value)


def test_text_where_a_sequence_belongs_is_a_problem(tmp_path: Path):
    from pydicom import dcmread
    from pydicom.dataelem import DataElement

    path = write_dicom(tmp_path, phantom((1, 4, 4)))[0]
    ds = dcmread(path)
    ds[0x52009230] = DataElement(0x52009230, "LO", "Doe^Jane")
    ds.save_as(path)
    with pytest.raises(VolumeError, match=r"PerFrameFunctionalGroupsSequence \(5200,9230\) is not a sequence"):
        read_volumes(path)


def test_the_package_imports_and_decodes_without_the_modules_of_posix(tmp_path: Path):
    path = write_dicom(tmp_path, phantom((1, 16, 12)), syntax=RLELossless)[0]
    code = (
        "import sys\n"
        "for name in ('resource', 'fcntl', 'termios', 'pwd', 'grp', 'pty', 'syslog'): sys.modules[name] = None\n"
        "from slicevote_volumes import read_volumes\n"
        "assert read_volumes(sys.argv[1])[0].slice(0).pixels.any()\n"
        "import slicevote_volumes.dicom.decoder_process as process; process._limit_memory()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
