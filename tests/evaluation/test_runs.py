"""Runs that are repeated, killed, given bad input, or told what they cannot do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.evaluation.conftest import COMMAND, read_tsv, slice_counts, svg_texts
from tests.evaluation.sets import picture, row, write_manifest, write_task
from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom, write_nifti


@pytest.fixture
def decathlon(tmp_path: Path) -> Path:
    root = tmp_path / "decathlon"
    write_task(root, "Task03_Liver", 2, 2)
    write_task(root, "Task04_Hippocampus", 2, 2)
    return root


class TestSecondRun:
    def test_embeds_nothing_again(self, decathlon, tmp_path, run):
        out = tmp_path / "out"
        # 2 tasks, 2 volumes of 9 and 12 slices a split, 2 blank slices a task.
        total = 2 * 2 * (9 + 12) - 4
        assert slice_counts(run("--data", decathlon, "--out", out, "--json")) == (total, 0)
        first = {path.name: path.read_text() for path in out.glob("*.tsv")}
        assert slice_counts(run("--data", decathlon, "--out", out, "--json")) == (0, total)
        assert {path.name: path.read_text() for path in out.glob("*.tsv")} == first

    def test_embeds_what_has_changed(self, decathlon, tmp_path, run):
        out = tmp_path / "out"
        run("--data", decathlon, "--out", out)
        changed = decathlon / "Task03_Liver" / "imagesTr" / "case_000.nii.gz"
        write_nifti(changed, picture("Task03_Liver", 7, slices=14), spacing_mm=2.0)
        (decathlon / "Task04_Hippocampus" / "imagesTr" / "case_001.nii.gz").unlink()
        assert slice_counts(run("--data", decathlon, "--out", out, "--json"))[0] == 14
        fresh = tmp_path / "fresh"
        run("--data", decathlon, "--out", fresh)
        assert (out / "recall.tsv").read_text() == (fresh / "recall.tsv").read_text()
        assert (out / "confusion.tsv").read_text() == (fresh / "confusion.tsv").read_text()

    def test_another_backbone_of_the_same_name_is_another(self, decathlon, tmp_path, run):
        out = tmp_path / "out"
        other = write_tiny_backbone(tmp_path / "other.onnx", seed=5)
        run("--data", decathlon, "--out", out)
        assert slice_counts(run("--data", decathlon, "--out", out, "--backbone", other, "--json"))[1] == 0

    def test_embeddings_serve_the_split_and_leaving_one_patient_out(self, decathlon, tmp_path, run):
        out = tmp_path / "out"
        total, _ = slice_counts(run("--data", decathlon, "--out", out, "--json"))
        again = run("--data", decathlon, "--out", out, "--leave-one-patient-out", "--json")
        assert slice_counts(again) == (0, total)

    def test_a_damaged_file_of_an_earlier_run_is_made_again(self, decathlon, tmp_path, run):
        out = tmp_path / "out"
        run("--data", decathlon, "--out", out)
        (victim, *_) = sorted(out.glob("work/tiny-*/embeddings/*/*.npz"))
        victim.write_bytes(victim.read_bytes()[:100])
        first = (out / "recall.tsv").read_text()
        assert 0 < slice_counts(run("--data", decathlon, "--out", out, "--json"))[0] < 80
        assert (out / "recall.tsv").read_text() == first

    def test_a_killed_run_goes_on(self, tmp_path, run, tiny_backbone):
        root = tmp_path / "decathlon"
        write_task(root, "Task03_Liver", 12, 12)
        out = tmp_path / "out"
        words = ["--data", str(root), "--out", str(out), "--backbone", str(tiny_backbone)]
        process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while len(list(out.glob("work/*/embeddings/*/*.npz"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "report.md").exists()
        embedded, reused = slice_counts(run("--data", root, "--out", out, "--json"))
        assert reused >= 9
        assert embedded + reused == 2 * sum(9 + 3 * number for number in range(12)) - 2
        run("--data", root, "--out", tmp_path / "whole")
        assert (out / "recall.tsv").read_text() == (tmp_path / "whole" / "recall.tsv").read_text()


class TestBadInput:
    def test_what_cannot_be_used_is_named_and_the_rest_goes_on(self, decathlon, tmp_path, run):
        write_task(decathlon, "Task09_Spleen", 2, 1)
        shutil.rmtree(decathlon / "Task09_Spleen" / "imagesTs")
        write_task(decathlon, "Task02_Heart", 1, 1)
        damaged = decathlon / "Task03_Liver" / "imagesTr" / "case_001.nii.gz"
        damaged.write_bytes(damaged.read_bytes()[:-200])
        not_finite = decathlon / "Task04_Hippocampus" / "imagesTs" / "case_101.nii.gz"
        image = nibabel.load(not_finite)
        values = np.asarray(image.dataobj, np.float32)
        values[3, 3, 3] = np.nan
        nibabel.Nifti1Image(values, image.affine).to_filename(not_finite)
        (decathlon / "Task03_Liver" / "imagesTr" / "._case_000.nii.gz").write_bytes(b"macOS leaves these")
        (decathlon / "Task99_Elbow").mkdir()
        out = tmp_path / "out"
        for attempt in range(2):  # problems do not go away because embeddings are kept
            finished = run("--data", decathlon, "--out", out, expect=1)
            report = (out / "report.md").read_text()
            for text in (finished.stderr, report):
                assert "Task09_Spleen/imagesTs" in text
                assert "Task03_Liver/imagesTr/case_001.nii.gz" in text
                assert "Task04_Hippocampus/imagesTs/case_101.nii.gz" in text
                assert "Task99_Elbow" in text
                assert "._case" not in text
            assert "What could not be used (4)" in report, attempt
        rows = read_tsv(out / "recall.tsv")
        assert {entry["class"] for entry in rows if entry["level"] == "organ"} >= {"liver", "hippocampus", "heart"}

    def test_rows_of_a_manifest(self, tmp_path, run):
        folder = tmp_path / "scans"
        rows = []
        for number, split in enumerate(("database", "database", "query", "query", "elsewhere")):
            name = f"scan_{number}.nii.gz"
            folder.mkdir(exist_ok=True)
            write_nifti(folder / name, picture("Task03_Liver", number, slices=6))
            rows.append(row(name, split, "liver", f"somebody-{number}"))
        rows[3]["organ"] = ""
        rows.append(row("gone.nii.gz", "query", "liver", "somebody-else"))
        write_manifest(folder, rows)
        finished = run("--data", folder, "--out", tmp_path / "out", expect=1)
        for name in ("gone.nii.gz", "scan_3.nii.gz", "scan_4.nii.gz"):
            assert name in finished.stderr
        assert "named in the report: 3" in finished.stderr
        assert "somebody" not in finished.stderr + (tmp_path / "out" / "report.md").read_text()
        rows = read_tsv(tmp_path / "out" / "recall.tsv")
        assert [entry["all"] for entry in rows if entry["class"] == "liver"] == ["1.0000"] * 3

    def test_a_label_that_no_row_has_leaves_its_level_out(self, tmp_path, run):
        folder = tmp_path / "scans"
        folder.mkdir()
        rows = []
        for number, split in enumerate(("database", "query")):
            write_nifti(folder / f"{number}.nii.gz", picture("Task03_Liver", number, slices=6))
            entry = row(f"{number}.nii.gz", split, "", "")
            del entry["organ"]
            rows.append(entry)
        write_manifest(folder, rows)
        finished = run("--data", folder, "--out", tmp_path / "out", expect=1)
        assert "labels no organ" in finished.stderr
        levels = {entry["level"] for entry in read_tsv(tmp_path / "out" / "recall.tsv")}
        assert levels == {"modality", "body_region"}

    def test_a_class_without_a_database_volume_is_named_and_in_no_mean(self, decathlon, tmp_path, run):
        shutil.rmtree(decathlon / "Task04_Hippocampus" / "imagesTr")
        out = tmp_path / "out"
        run("--data", decathlon, "--out", out, expect=1)
        rows = {(e["level"], e["class"], e["index"]): e for e in read_tsv(out / "recall.tsv")}
        assert rows["organ", "hippocampus", "EXACT"]["all"] == ""
        for name in ("liver", "(mean of classes)", "(all cases)"):
            assert rows["organ", name, "EXACT"]["all"] == "1.0000"
        assert "**No database volume** for hippocampus (2 cases)" in (out / "report.md").read_text()

    def test_volumes_without_contrast_find_nothing(self, decathlon, tmp_path, run):
        write_nifti(decathlon / "Task03_Liver" / "imagesTs" / "case_900.nii.gz", np.full((5, 48, 48), -1000, np.int16))
        write_nifti(decathlon / "Task03_Liver" / "imagesTr" / "case_901.nii.gz", np.full((5, 48, 48), -1000, np.int16))
        out = tmp_path / "out"
        run("--data", decathlon, "--out", out)
        cases = [
            (entry["class"], entry["found"], entry["cases"])
            for entry in read_tsv(out / "confusion.tsv")
            if (entry["level"], entry["index"], entry["scheme"]) == ("organ", "HNSW", "all")
        ]
        assert ("liver", "(nothing)", "1") in cases


class TestLeaveOnePatientOut:
    def test_nobody_finds_himself(self, tmp_path, run):
        folder = tmp_path / "scans"
        folder.mkdir()
        rows = []
        generator = np.random.default_rng(0)
        # A patient's two scans are nearly the same; the two livers look alike, and unlike the heart.
        for patient, seed in enumerate((22, 22, 33)):
            anatomy = phantom(seed, slices=9) + generator.normal(0, 100, size=(9, 48, 48))
            for scan in range(2):
                name = f"{patient}-{scan}.nii.gz"
                noisy = anatomy + generator.normal(0, 20, size=anatomy.shape)
                write_nifti(folder / name, noisy.clip(-1000, 1000).astype(np.int16), spacing_mm=2.0)
                organ, modality, region = ("liver", "CT", "abdomen") if patient < 2 else ("heart", "mr", "chest")
                rows.append(row(name, "", organ, f"P{patient}", modality=modality, region=region))
        write_manifest(folder, rows)
        out = tmp_path / "out"
        run("--data", folder, "--out", out, "--leave-one-patient-out")
        found = {(e["level"], e["class"], e["index"]): e for e in read_tsv(out / "recall.tsv")}
        assert {entry["class"] for entry in found.values() if entry["level"] == "modality"} >= {"CT", "MR"}
        for index in ("HNSW", "LSH", "EXACT"):
            assert found["organ", "liver", index]["all"] == "1.0000"
            # The only heart is one patient's: leaving him out, there is none to be found.
            assert found["organ", "heart", index]["all"] == ""
        hearts = {entry["found"] for entry in read_tsv(out / "confusion.tsv") if entry["class"] == "heart"}
        assert hearts == {"liver"}
        report = (out / "report.md").read_text()
        assert "**No database volume of another patient** for heart (2 cases)" in report


class TestCommand:
    def test_data_sets_are_put_together(self, decathlon, tmp_path, run):
        folder = tmp_path / "scans"
        folder.mkdir()
        rows = [row("a.nii.gz", "database", "Spleen", "A"), row("b.nii.gz", "query", "spleen", "B")]
        for number, entry in enumerate(rows):
            write_nifti(folder / entry["path"], picture("Task09_Spleen", number, slices=9))
        write_manifest(folder, rows)
        finished = run(
            *("--data", folder, "--data", decathlon, "--out", tmp_path / "out", "--json", "--index", "exact,hnsw")
        )
        document = json.loads(finished.stdout)
        assert document["cases"] == {"database": 5, "query": 5}
        assert {entry["index"] for entry in document["recall"]} == {"EXACT", "HNSW"}
        # With another data set among them the paper's figures say nothing.
        assert not (tmp_path / "out" / "paper_comparison.tsv").exists()
        organs = {e["class"] for e in read_tsv(tmp_path / "out" / "recall.tsv") if e["level"] == "organ"}
        assert organs >= {"liver", "hippocampus", "spleen"}

    def test_two_backbones(self, decathlon, tmp_path, run, tiny_backbone):
        other = write_tiny_backbone(tmp_path / "other.onnx", name="other", dimension=32, seed=3)
        run("--data", decathlon, "--out", tmp_path / "out", "--backbone", tiny_backbone, "--backbone", other)
        rows = read_tsv(tmp_path / "out" / "recall.tsv")
        assert {entry["backbone"] for entry in rows} == {"tiny", "other"}

    def test_a_backbone_given_twice_is_named(self, decathlon, tmp_path, run, tiny_backbone):
        words = ("--backbone", tiny_backbone, "--backbone", tiny_backbone)
        finished = run("--data", decathlon, "--out", tmp_path / "out", *words, expect=1)
        assert "given twice (tiny, tiny)" in finished.stderr

    def test_without_exact_search_nothing_is_compared_with_it(self, decathlon, tmp_path, run):
        run("--data", decathlon, "--out", tmp_path / "out", "--index", "hnsw")
        assert not (tmp_path / "out" / "index_agreement.tsv").exists()
        assert "Agreement" not in (tmp_path / "out" / "report.md").read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--index", "hnsw,flat"), "flat"),
            (("--index", ""), "at least one of hnsw"),
            (("--tasks", "Elbow"), "Elbow"),
            (("--provider", "abacus"), "abacus"),
            (("--sigma", "0"), "sigma"),
        ],
    )
    def test_misuse_is_code_2(self, decathlon, tmp_path, run, options, message):
        finished = run("--data", decathlon, "--out", tmp_path / "out", *options, expect=2)
        assert message in finished.stderr

    def test_a_folder_that_is_no_data_set_is_misuse(self, tmp_path, run):
        (tmp_path / "empty").mkdir()
        assert "not a data set" in run("--data", tmp_path / "empty", "--out", tmp_path / "out", expect=2).stderr
        run("--data", tmp_path / "missing", "--out", tmp_path / "out", expect=2)

    def test_a_folder_that_cannot_be_written_is_misuse(self, decathlon, tmp_path, run):
        (tmp_path / "file").touch()
        finished = run("--data", decathlon, "--out", tmp_path / "file" / "out", expect=2)
        assert "cannot be written" in finished.stderr

    def test_a_manifest_that_cannot_be_used_is_misuse(self, tmp_path, run):
        write_manifest(tmp_path / "scans", [row("a.nii.gz", "query", "liver", "A", modality="MRI")])
        finished = run("--data", tmp_path / "scans", "--out", tmp_path / "out", expect=2)
        assert "did you mean MR" in finished.stderr

    def test_help_and_version(self, run):
        assert run("-h").stdout == run("--help").stdout
        assert "--leave-one-patient-out" in run("-h").stdout
        assert run("--version").stdout.strip() == version("slicevote")

    def test_a_file_that_is_no_backbone_is_a_failure(self, decathlon, tmp_path, run):
        wrong = tmp_path / "wrong.onnx"
        wrong.write_bytes(b"no graph")
        finished = run("--data", decathlon, "--out", tmp_path / "out", "--backbone", wrong, expect=1)
        assert finished.stderr.startswith("error: ")


def test_the_server_needs_none_of_the_evaluations_packages():
    absent = ("matplotlib", "pandas", "sklearn", "scipy", "slicevote_evaluation")
    hidden = f"import sys; sys.modules.update(dict.fromkeys({absent}))"
    script = f"{hidden}; import slicevote_server.cli, slicevote_server.service.server"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_class_that_no_query_has_is_in_both_axes_of_the_confusion(tmp_path, run):
    folder = tmp_path / "scans"
    folder.mkdir()
    rows = [row("a.nii.gz", "database", "spleen", "A"), row("b.nii.gz", "query", "liver", "B")]
    rows.append(row("c.nii.gz", "database", "liver", "C"))
    for number, entry in zip((1, 1, 2), rows, strict=True):  # the query looks like the spleen
        write_nifti(folder / entry["path"], picture("Task09_Spleen", number, slices=6))
    write_manifest(folder, rows)
    run("--data", folder, "--out", tmp_path / "out")
    texts = svg_texts(tmp_path / "out" / "confusion_organ_tiny.svg")
    assert [texts.count(name) for name in ("liver", "spleen")] == [2, 2]
