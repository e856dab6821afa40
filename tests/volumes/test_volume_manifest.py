"""The manifest, a table of labels beside the scans."""

from pathlib import Path

import pytest
from slicevote_volumes import ManifestError, discover, find_manifest, labelled, load_manifest, read_volumes

from tests.volumes.phantoms import phantom, write_dicom, write_nifti

HEADER = "path\tsplit\tmodality\tbody_region\torgan\tpatient\tdims\tspacing_mm\tlicence\tsource\tnote\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_dicom(tmp_path / "scans" / "knee_dcm", phantom())
    write_nifti(tmp_path / "scans" / "liver.nii.gz", phantom(seed=1))
    write_nifti(tmp_path / "scans" / "stray.nii", phantom(seed=2))
    (tmp_path / "manifest.tsv").write_text(
        HEADER
        + "scans/knee_dcm\tquery\tMR\textremity\tknee\tp-1\t8x10x6\t1x1x1\tCC0\there\tfine\n"
        + "scans/liver.nii.gz\tdatabase\tCT\tabdomen\t\tp-2\t8x10x6\t1x1x1\tCC0\there\t\n"
        + "scans/gone.nii\tdatabase\tCT\tabdomen\tliver\tp-3\t8x10x6\t1x1x1\tCC0\there\t\n",
        encoding="utf-8",
    )
    return tmp_path


def test_volumes_take_labels_modality_and_patient_of_their_row(archive: Path):
    manifest = find_manifest(archive / "scans" / "liver.nii.gz")
    assert manifest is not None
    assert manifest.file == archive / "manifest.tsv"
    rows = {volume.source.split("/")[-1]: (volume, manifest.row_for(volume)) for volume in discover([archive]).volumes}
    liver, row = rows["liver.nii.gz"]
    assert row is not None
    assert (row.patient, row.modality, row.split) == ("p-2", "CT", "database")
    assert row.labels == {"modality": "CT", "body_region": "abdomen"}
    found = labelled(liver, row)
    assert dict(found.labels) == {"modality": "CT", "body_region": "abdomen"}
    assert (found.modality, found.patient_id, found.intensity_range()) == ("CT", "p-2", None)
    assert "p-2" not in repr(found) + repr(row) + repr(manifest)
    knee, row = rows["knee_dcm"]
    assert row is not None
    assert labelled(knee, row).labels["organ"] == "knee"
    assert rows["stray.nii"][1] is None


def test_a_row_is_found_by_a_relative_path(archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(archive / "scans")
    manifest = find_manifest(Path("knee_dcm"))
    assert manifest is not None
    row = manifest.row_for(read_volumes(Path("knee_dcm"))[0])
    assert row is not None
    assert row.path == "scans/knee_dcm"


def test_rows_whose_file_is_missing_are_listed(archive: Path):
    assert [row.path for row in load_manifest(archive / "manifest.tsv").missing()] == ["scans/gone.nii"]


def test_it_is_looked_for_six_folders_up_and_no_further(tmp_path: Path):
    (tmp_path / "manifest.tsv").write_text("path\n")
    deep = tmp_path.joinpath(*"abcdefg")
    deep.mkdir(parents=True)
    assert find_manifest(deep.parent) is not None
    assert find_manifest(deep) is None


def test_a_table_of_something_else_is_passed_over(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.tsv").write_text("file\tsum\nx\ty\n")
    assert find_manifest(tmp_path / "a") is None
    (tmp_path / "manifest.tsv").write_text("path\nscan.nii\n")
    found = find_manifest(tmp_path / "a")
    assert found is not None
    assert found.folder == tmp_path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column `path`"),
        ("file\torgan\na\tb\n", "no column `path`"),
        ("path\torgan\torgan\na\tb\tc\n", "two columns have the same name"),
        ("path\torgan\na\tb\na\tc\n", "line 3: a second row for a"),
        ("path\torgan\na\tb\tc\n", "line 2 has 3 columns, the first line names 2"),
        ("path\torgan\n\tb\n", "line 2: path must be given"),
        ("path\tmodality\na\tCT\nb\tMRI\n", "line 3: 'MRI' is not a DICOM modality; did you mean MR"),
        ("path\n/etc/passwd\n", "line 2: path must be given, relative"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, reason: str):
    file = tmp_path / "manifest.tsv"
    file.write_text(text)
    with pytest.raises(ManifestError, match=reason) as caught:
        load_manifest(file)
    assert str(file) in str(caught.value)


def test_what_is_not_utf_8(tmp_path: Path):
    (tmp_path / "manifest.tsv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(ManifestError, match="UTF-8"):
        load_manifest(tmp_path / "manifest.tsv")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(tmp_path / "none.tsv")


def test_empty_lines_a_byte_order_mark_and_quotes_are_taken_as_they_are(tmp_path: Path):
    (tmp_path / "manifest.tsv").write_text('\ufeffpath\torgan\n\na b.nii\t"left" knee\n\n', encoding="utf-8")
    (row,) = load_manifest(tmp_path / "manifest.tsv").rows
    assert (row.path, row.labels) == ("a b.nii", {"organ": '"left" knee'})


def test_the_modality_of_a_row_is_normalised(tmp_path: Path):
    write_nifti(tmp_path / "scan.nii", phantom())
    (tmp_path / "manifest.tsv").write_text("path\tmodality\nscan.nii\tct\nother.nii\t\n", encoding="utf-8")
    row, other = load_manifest(tmp_path / "manifest.tsv").rows
    assert (row.modality, row.labels, other.modality, other.labels) == ("CT", {"modality": "CT"}, "", {})
    ct = labelled(read_volumes(tmp_path / "scan.nii")[0], row)
    assert (ct.modality, ct.labels["modality"], ct.intensity_range()) == ("CT", "CT", None)
