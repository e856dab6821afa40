"""Runs the main job as a user would, with the three commands, and shows what they print."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import pydicom.data

from demo.phantoms import write_phantoms

FOLDER = Path("demo-data")
COMMANDS = Path(sys.executable).parent
START_TIMEOUT_S = 60

NIFTI_EXAMPLES = ("example4d.nii.gz", "anatomical.nii", "reoriented_anat_moved.nii")
DICOM_EXAMPLES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "693_J2KI.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "examples_overlay.dcm",
    "dicomdirtests/77654033/CT2",
    "dicomdirtests/98892001/CT5N",
)


def say(text: str) -> None:
    """Prints a heading."""
    print(f"\n== {text}", flush=True)


def run(*words: str) -> None:
    """Shows a command, runs it, and shows what it prints."""
    print(f"$ {' '.join(words)}", flush=True)
    subprocess.run([str(COMMANDS / words[0]), *words[1:]], check=True)


def collect_scans(folder: Path) -> list[Path]:
    """Copies real scanner files out of the installed nibabel and pydicom packages."""
    folder.mkdir(parents=True, exist_ok=True)
    nifti = Path(nibabel.__file__).parent / "tests" / "data"
    dicom = Path(pydicom.data.__file__).parent / "test_files"
    copied = []
    for source in [*(nifti / name for name in NIFTI_EXAMPLES), *(dicom / name for name in DICOM_EXAMPLES)]:
        target = folder / source.name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        copied.append(target)
    return copied


def start_server(backbone: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server on a free port and waits until it listens; gives it and its address."""
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [
                str(COMMANDS / "slicevote-server"),
                *("serve", "--data", str(FOLDER / "archive"), "--backbone", str(backbone), "--listen", "127.0.0.1:0"),
            ],
            stderr=stream,
        )
    marker = "listening on "
    for _ in range(START_TIMEOUT_S * 10):
        text = log.read_text()
        if marker in text:
            return server, text.split(marker)[1].split()[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    server.kill()
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def main() -> None:
    """Exports, serves, ingests, searches, and says where everything lies."""
    FOLDER.mkdir(exist_ok=True)
    shutil.rmtree(FOLDER / "archive", ignore_errors=True)
    backbone = FOLDER / "efficientnet-lite0.onnx"
    say("1. A backbone becomes one ONNX file (pretrained weights out of a package, checked against PyTorch)")
    run("slicevote-export", "efficientnet-lite0", "--out", str(backbone))
    say("2. A server opens an archive")
    server, address = start_server(backbone, FOLDER / "server.log")
    # The demonstration keeps its own secret for patient keys and leaves the user's alone.
    os.environ["SLICEVOTE_PATIENT_SECRET"] = str(FOLDER / "patient-secret")
    os.environ["SLICEVOTE_SERVER"] = address
    print(f"slicevote-server serve: listening on {address}, log in {FOLDER / 'server.log'}")
    try:
        say("3. Real scanner files go in (examples that nibabel and pydicom ship; MR heads, CT and MR single slices)")
        scans = FOLDER / "scans"
        collect_scans(scans)
        run("slicevote", "ingest", *(str(scans / name) for name in NIFTI_EXAMPLES), "--modality", "MR")
        run("slicevote", "ingest", *(str(scans / Path(name).name) for name in DICOM_EXAMPLES))
        say("4. Phantoms go in (drawn by this demonstration, not scanned), with labels from a manifest.tsv")
        phantoms = write_phantoms(FOLDER / "phantoms")
        run("slicevote", "ingest", str(phantoms))
        say("5. A real MR head is searched: the same head in another acquisition comes first")
        run("slicevote", "search", str(scans / "anatomical.nii"), "--modality", "MR", "--top", "5")
        say("6. One protocol of a real 4-D MR scan is searched: it lies nearest to the scan's other protocol")
        run("slicevote", "search", str(scans / "example4d.nii.gz"), "--modality", "MR", "--pick", "2", "--top", "5")
        say("7. A phantom chest is searched with ten random slices; the votes by body region")
        chest = str(phantoms / "phantom-chest-1.nii.gz")
        run("slicevote", "search", chest, "--sampling", "random:10", "--top", "5")
        say("8. What the server holds")
        run("slicevote", "status")
    finally:
        server.terminate()
        server.wait()
    say("Everything lies in " + str(FOLDER))
    print(
        f"""To go on, start the server again and search with your own scans:

  . .venv/bin/activate
  slicevote-server serve --data {FOLDER / "archive"} --backbone {backbone}
  slicevote ingest /path/to/your/dicom/folder        (in another terminal)
  slicevote search /path/to/one/series
  slicevote volumes; slicevote status; slicevote search --help"""
    )


if __name__ == "__main__":
    main()
