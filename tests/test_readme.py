"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.phantoms import phantom, write_nifti

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(server, tmp_path, monkeypatch, capsys):
    scans = tmp_path / "scans" / "patient-7" / "ct"
    scans.mkdir(parents=True)
    for seed in (1, 2):
        write_nifti(scans / f"{seed}.nii.gz", phantom(seed))
    write_nifti(tmp_path / "head.nii.gz", phantom(3))
    (tmp_path / "scans" / "manifest.tsv").write_text("path\tmodality\n")
    monkeypatch.setenv("SLICEVOTE_PATIENT_SECRET", str(tmp_path / "secret"))
    section = README.read_text().split("### From Python")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    program = block[1]
    for shown, real in (
        ("localhost:50051", server.address),
        ("/data/scans", str(tmp_path / "scans")),
        ('"head.nii.gz"', repr(str(tmp_path / "head.nii.gz"))),
        # The phantoms have no modality of their own.
        ('{"modality": ["MR"]}', '{"body_region": ["chest"]}'),
    ):
        assert shown in program
        program = program.replace(shown, real)
    exec(compile(program, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("is in the archive") == 2
    assert "%" in printed
