"""Modality codes: the same however they are given; an unknown one is refused or warned of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slicevote_volumes import Discovery, Instance, discover, discover_instances, labelled, load_manifest, read_volumes
from slicevote_volumes.modality import check_modality, normalise_modality

from tests.volumes.phantoms import phantom, values, write_dicom, write_nifti


def dicom_header(folder: Path):
    def edit(ds, plane):
        ds["Modality"].value = " ct"

    write_dicom(folder, phantom(), edit=edit)
    return read_volumes(folder)


def dicom_argument(folder: Path):
    write_dicom(folder, phantom())
    return read_volumes(folder, modality="ct")


def instances_argument(folder: Path):
    paths = write_dicom(folder, phantom())
    return discover_instances(map(Instance.from_path, paths), modality="ct").volumes


def nifti_argument(folder: Path):
    return read_volumes(write_nifti(folder / "scan.nii.gz", phantom()), modality="ct")


def discover_argument(folder: Path):
    return discover([write_nifti(folder / "scan.nii", phantom())], modality=" Ct ").volumes


def manifest(folder: Path):
    write_nifti(folder / "scan.nii", phantom())
    (folder / "manifest.tsv").write_text("path\tmodality\nscan.nii\tct\n")
    (row,) = load_manifest(folder / "manifest.tsv").rows
    return [labelled(volume, row) for volume in read_volumes(folder / "scan.nii")]


def labels_argument(folder: Path):
    return [volume.with_labels({}, modality="ct") for volume in read_volumes(write_nifti(folder / "a.nii", phantom()))]


def label(folder: Path):
    write_dicom(folder, phantom())  # MR
    return [volume.with_labels({"modality": "ct"}) for volume in read_volumes(folder)]


def constructor(folder: Path):
    return [replace(volume, modality="ct") for volume in read_volumes(write_nifti(folder / "a.nii", phantom()))]


@pytest.mark.parametrize(
    "given",
    [
        dicom_header,
        dicom_argument,
        instances_argument,
        nifti_argument,
        discover_argument,
        manifest,
        labels_argument,
        label,
        constructor,
    ],
)
def test_a_ct_is_a_ct_however_it_is_said(tmp_path: Path, given):
    (volume,) = given(tmp_path)
    assert volume.modality == "CT"
    assert volume.intensity_range() is None
    assert volume.labels.get("modality", "CT") == "CT"


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_volumes(path, modality="MRI"),
        lambda path: discover([path], modality="MRI"),
        lambda path: discover_instances([], modality="MRI"),
        lambda path: read_volumes(path)[0].with_labels({}, modality="MRI"),
        lambda path: read_volumes(path)[0].with_labels({"modality": "MRI"}),
    ],
)
def test_an_unknown_modality_that_a_person_typed_is_refused(tmp_path: Path, read):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    with pytest.raises(ValueError, match="'MRI' is not a DICOM modality; did you mean MR"):
        read(path)


def test_an_inverted_ct_keeps_its_hounsfield_values_whatever_the_case(tmp_path: Path):
    scan = phantom()

    def edit(ds, plane):
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds["Modality"].value = "ct"

    write_dicom(tmp_path, scan, edit=edit)
    np.testing.assert_array_equal(values(read_volumes(tmp_path)[0]), scan.values)


@pytest.mark.parametrize(("written", "modality"), [("C.T. scan", ""), ("QX", "QX"), ("CT\\MR", "")])
def test_a_header_with_a_strange_modality_is_read(tmp_path: Path, written: str, modality: str):
    def edit(ds, plane):
        ds.Modality = written

    write_dicom(tmp_path, phantom(), edit=edit)
    found = discover([tmp_path])
    assert [volume.modality for volume in found.volumes] == [modality]
    assert len(found.warnings) == (not modality)


def test_objects_that_are_no_scans_are_skipped_whatever_the_case(tmp_path: Path):
    write_dicom(tmp_path, phantom(), modality="seg")
    assert (discover([tmp_path]).volumes, discover([tmp_path]).skipped) == ([], 6)


def test_a_file_without_a_modality_gets_one_warning(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", phantom())
    four = phantom((3, 4, 5))
    four = type(four)(np.stack([four.values] * 3, axis=0))
    import nibabel

    nibabel.save(nibabel.Nifti1Image(four.values.transpose(3, 2, 1, 0), np.eye(4)), tmp_path / "4d.nii")
    write_dicom(tmp_path / "dicom", phantom())
    found = discover([tmp_path])
    assert len(found.volumes) == 5
    assert found.problems == []
    assert [warning.path for warning in found.warnings] == [tmp_path / "4d.nii", path]
    for words in ("has no modality", "Hounsfield", "modality=CT", "--modality"):
        assert words in found.warnings[0].reason
    assert discover([path], modality="CT").warnings == []
    (volume,) = discover([path]).volumes
    assert Discovery([volume.with_labels({"modality": "MR"})]).warnings == []


def test_codes():
    assert (normalise_modality(" mr\0"), normalise_modality("")) == ("MR", "")
    assert (check_modality("pt"), check_modality("")) == ("PT", "")
    for text in ("C.T.", "A" * 17, "Doe^Jane"):
        with pytest.raises(ValueError, match="16 characters") as caught:
            normalise_modality(text)
        assert text not in str(caught.value)
