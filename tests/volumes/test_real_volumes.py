"""Scans of real scanners, from the folder beside the checkout."""

import subprocess
from pathlib import Path

import dcm2niix
import numpy as np
import pytest
from slicevote_volumes import Manifest, discover, labelled, load_manifest, read_volumes

pytestmark = pytest.mark.realdata
# Series that dcm2niix converts without resampling them.
CONVERTIBLE = [
    "CT_chest/conceptToClinic__LIDC-IDRI-0003_dcm",
    "CT_abdomen/totalseg__example_ct_dicom",
    "CT_abdomen/medimagesjl__ScalarVolume_0_dcm",
    "MR_pelvis/picaiprep__ProstateX-0000_T2tra_dcm",
    "MR_pelvis/picaiprep__ProstateX-0000_T2sag_dcm",
    "MR_pelvis/picaiprep__ProstateX-0001_T2cor_dcm",
    "MR_pelvis/picaiprep__ProstateX-0218_ADC_dcm",
    "MR_head/datalad__Jane_Doe_dcm",
    "MR_knee/pymskt__MESE_echo1_dcm",
]


@pytest.fixture(scope="module")
def manifest(shared_data: Path) -> Manifest:
    return load_manifest(shared_data / "manifest.tsv")


def test_every_row_of_the_manifest_reads(manifest: Manifest):
    assert manifest.missing() == []
    for row in manifest.rows:
        volumes = read_volumes(manifest.path_of(row))
        extents = [int(extent) for extent in row.columns["dims"].split("x")]
        assert len(volumes) == (extents[3] if len(extents) > 3 else 2 if "echo1+4" in row.path else 1), row.path
        for volume in volumes[:2]:
            assert manifest.row_for(volume) == row
            known = labelled(volume, row)
            assert known.modality == row.modality
            assert sorted((len(known), *known.shape)) == sorted(extents[:3]), row.path
            assert np.diff(known.positions_mm).min() > 0
            middle = known.slice(len(known) // 2).values()
            assert np.isfinite(middle).all()
            assert middle.std() > 0
            assert (known.intensity_range() is None) == (row.modality == "CT")
            known.release()


def test_the_whole_tree_at_once(shared_data: Path):
    found = discover([shared_data])
    assert found.problems == []
    assert len({volume.id for volume in found.volumes}) == len(found.volumes)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_dicom_and_its_conversion_by_dcm2niix_are_the_same_slices(shared_data: Path, tmp_path: Path, name: str):
    folder = shared_data / "volumes" / name
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "scan", "-o", str(tmp_path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    (converted,) = tmp_path.glob("*.nii")
    (dicom,), (nifti,) = read_volumes(folder), read_volumes(converted)
    assert len(dicom) == len(nifti)
    for a, b in zip(dicom.slices(range(len(dicom))), nifti.slices(range(len(nifti))), strict=True):
        np.testing.assert_allclose(a.values(), b.values(), rtol=1e-6)
    np.testing.assert_allclose(dicom.positions_mm, nifti.positions_mm, atol=1e-3)


def test_the_spine_is_at_the_bottom_and_the_liver_on_the_left(shared_data: Path):
    """The anatomy itself, for a convention that is wrong everywhere would agree with itself."""
    for name in ("totalseg__example_ct_sm.nii.gz", "medimagesjl__ScalarVolume_0_dcm", "totalseg__example_ct_dicom"):
        (volume,) = read_volumes(shared_data / "volumes" / "CT_abdomen" / name, modality="CT")
        block = np.stack([one.values() for one in volume.slices(range(len(volume)))])
        body = block > -300
        rows, columns = (np.average(np.arange(n), weights=body.sum(axis=axes)) for n, axes in zip(
            block.shape[1:], [(0, 2), (0, 1)], strict=True))  # fmt: skip
        width = int(body.any(axis=(0, 1)).sum() * 0.08)
        middle = block[:, :, int(columns) - width : int(columns) + width]
        bone = np.average(np.arange(block.shape[1]), weights=(middle > 250).sum(axis=(0, 2)))
        assert bone > rows, name
        liver = (block > 20) & (block < 140)
        front = liver[:, : int(rows)]
        assert front[:, :, : int(columns)].sum() > front[:, :, int(columns) :].sum(), name
