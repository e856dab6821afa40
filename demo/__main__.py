"""Run the main job with the three commands, as a user would, and show what they print."""

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

NEXT = f"""\
The backbone, the scans and an archive of them are in the folder {FOLDER}.
To search your own scans, start a server with an archive of its own:

  source .venv/bin/activate
  slicevote-server serve --data archive \\
      --backbone {FOLDER}/efficientnet-lite0.onnx

and then, in a second terminal:

  source .venv/bin/activate
  slicevote ingest /path/to/a/folder/of/scans    # DICOM or NIfTI
  slicevote search /path/to/one/series

Every command explains itself: slicevote --help, slicevote search --help"""


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def run(*words: str) -> None:
    """Show a command, run it, and show what it prints."""
    print(f"$ {' '.join(words)}", flush=True)
    subprocess.run([str(COMMANDS / words[0]), *words[1:]], check=True)


def collect_scans(nifti: Path, dicom: Path) -> None:
    """Copy real scanner files out of the installed nibabel and pydicom packages into two folders."""
    nibabel_files = Path(nibabel.__file__).parent / "tests" / "data"
    pydicom_files = Path(pydicom.data.__file__).parent / "test_files"
    for names, source, target in ((NIFTI_EXAMPLES, nibabel_files, nifti), (DICOM_EXAMPLES, pydicom_files, dicom)):
        target.mkdir(parents=True, exist_ok=True)
        for path in (source / name for name in names):
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target / path.name)


def start_server(backbone: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server on a free port, wait until it listens, and return it and its address."""
    words = ("slicevote-server", "serve", "--data", str(FOLDER / "archive"), "--backbone", str(backbone))
    print(f"$ {' '.join(words[:4])} \\\n      {' '.join(words[4:])}")
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [str(COMMANDS / words[0]), *words[1:], "--listen", "127.0.0.1:0"], stdout=stream, stderr=stream
        )
    marker = "listening on "
    for _ in range(START_TIMEOUT_S * 10):
        text = log.read_text()
        if marker in text:
            address = text.split(marker)[1].split()[0]
            print(f"listening on {address}; its log is {log}")
            return server, address
        if server.poll() is not None:
            break
        time.sleep(0.1)
    server.kill()
    raise SystemExit(f"the server did not start; its log, {log}, says:\n{log.read_text()}")


def main() -> None:
    """Export, serve, ingest, search, and say what to do next."""
    started = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    for name in ("archive", "nifti", "dicom", "phantoms"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    backbone = FOLDER / "efficientnet-lite0.onnx"
    say("1. Make a backbone: weights from a Python package become one ONNX file")
    run("slicevote-export", "efficientnet-lite0", "--out", str(backbone))
    say("2. Start a server; its archive is empty")
    server, address = start_server(backbone, FOLDER / "server.log")
    # The demonstration keeps its own secret for patient keys and leaves the user's alone.
    os.environ["SLICEVOTE_PATIENT_SECRET"] = str(FOLDER / "patient-secret")
    os.environ["SLICEVOTE_SERVER"] = address
    try:
        say("3. Ingest real scanner files: examples that nibabel and pydicom ship")
        nifti, dicom = FOLDER / "nifti", FOLDER / "dicom"
        collect_scans(nifti, dicom)
        run("slicevote", "ingest", str(nifti), "--modality", "MR")
        run("slicevote", "ingest", str(dicom))
        say("4. Ingest phantoms: drawn for this demo; a manifest.tsv labels them")
        phantoms = write_phantoms(FOLDER / "phantoms")
        run("slicevote", "ingest", str(phantoms))
        say("5. Search with an MR head; the same head, moved, should come first")
        run("slicevote", "search", str(nifti / "anatomical.nii"), "--modality", "MR")
        say("6. Search with half of a 4-D MR scan; its other half should come first")
        run("slicevote", "search", str(nifti / "example4d.nii.gz"), "--modality", "MR", "--pick", "2")
        say("7. Search with eight random slices of a phantom chest; chests should win")
        chest = str(phantoms / "phantom-chest-1.nii.gz")
        run("slicevote", "search", chest, "--sampling", "random:8")
        say("8. Ask the server what it holds")
        run("slicevote", "status")
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{Path(error.cmd[0]).name} failed; the server's log is {FOLDER / 'server.log'}") from error
    finally:
        server.terminate()
        server.wait()
    say(f"Done in {time.monotonic() - started:.0f} s; the server is stopped. What to do next")
    print(NEXT)


if __name__ == "__main__":
    main()
