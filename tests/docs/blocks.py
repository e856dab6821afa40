"""The code blocks of the documentation: what they are, and how they are run.

A page's blocks run in order, in one folder, as a reader would run them: `console` blocks by bash, `python` blocks each
as a program of its own. A line that begins with `$ ` is a command; the lines below it are its output, whose words must
occur in the real one. HTML comments above a block say what is different about it:

    <!-- not run: REASON -->     it cannot be run in a test
    <!-- needs: PROGRAM -->      it runs only where the program is installed
    <!-- in: checkout -->        it runs in the checkout; $OUT is the page's folder
    <!-- file: NAME -->          it is the content of a file, which is written
    <!-- output: LINES -->       `python -m tests.docs.blocks PAGE...` writes the real output below its commands
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from demo.phantoms import write_phantoms
from tests.support.backbones import write_tiny_backbone
from tests.support.phantoms import phantom, write_nifti
from tests.support.servers import ServerProcess
from tests.volumes.phantoms import phantom as dicom_phantom
from tests.volumes.phantoms import write_dicom

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):50051")
METRICS_ADDRESS = "127.0.0.1:9464"
SCANS = "/data/scans"
SERVE = "slicevote-server serve"
COLUMNS = 80
TIMEOUT_S = 300

_COMMENT = re.compile(r"<!-- ([a-z ]+)(?:: (.*?))? -->")
_FENCE = re.compile(r"```([a-z]*)")
_WORD = re.compile(r"[A-Za-z]{3,}")
_CUT = re.compile(r"\S*…\S*")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The file that it is in.
        line: Line of its first line, from 1.
        language: What stands behind the fence.
        lines: Its lines.
        marks: The comments above it.
    """

    page: Path
    line: int
    language: str
    lines: tuple[str, ...] = field(repr=False)
    marks: Mapping[str, str]

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason_not_to_run(self) -> str:
        """Why it is not run here; empty if it is."""
        missing = "needs" in self.marks and shutil.which(self.marks["needs"], path=PATH) is None
        return f"needs {self.marks['needs']}" if missing else self.marks.get("not run", "")

    def commands(self) -> list[tuple[str, list[str]]]:
        """Return every command of a console block with the output that the page shows."""
        found: list[tuple[str, list[str]]] = []
        for line in self.lines:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and found[-1][0].endswith("\\"):
                found[-1] = (found[-1][0][:-1] + line.strip(), [])
            else:
                assert found, f"{self.name}: a console block begins with a command"
                found[-1][1].append(line)
        return found


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page that are run, or that say why they are not."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if comment := _COMMENT.fullmatch(line):
            marks[comment[1]] = comment[2] or ""
        elif line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            fence = _FENCE.fullmatch(line)
            if fence is not None and (fence[1] in ("console", "python") or marks):
                found.append(Block(page, number + 1, fence[1], tuple(body), marks))
            marks = {}
        elif line.strip():
            marks = {}
    return found


class Reader:
    """Somebody who does what a page says, in a folder with the files that the pages speak of.

    Args:
        folder: The folder.
        blocks: What will be run. A page that exports no backbone gets a tiny one.
        terminal: Run the commands in a terminal of 80 columns.
    """

    def __init__(self, folder: Path, blocks: Sequence[Block], *, terminal: bool = False) -> None:
        self.folder = folder
        self._terminal = terminal
        self._servers: list[ServerProcess] = []
        self._address = self._metrics_address = ""
        scans = folder / SCANS.lstrip("/")
        write_phantoms(scans / "phantoms")
        write_dicom(scans / "patient-7" / "ct", dicom_phantom((12, 64, 64)), modality="CT")
        manifest = write_phantoms(folder / "labelled", people=2) / "manifest.tsv"
        header, *rows = manifest.read_text().splitlines()
        manifest.write_text("\n".join([f"{header}\torgan", *(f"{row}\t{row.split()[2]}" for row in rows)]))
        write_nifti(folder / "head.nii.gz", phantom(3))
        if not any("--out lite0.onnx" in line for block in blocks for line in block.lines):
            write_tiny_backbone(folder / "lite0.onnx", name="lite0")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLICEVOTE_")},
            "PATH": PATH,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "SLICEVOTE_PATIENT_SECRET": str(folder / "patient-secret"),
            "OUT": str(folder),
            "TERM": "dumb",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.__exit__(None, None, None)

    def run(self, block: Block) -> list[str]:
        """Run a block; return the output of each command, as a page would show it.

        Raises:
            AssertionError: A command fails, or its output is not what the page shows.
        """
        if "file" in block.marks:
            (self.folder / block.marks["file"]).write_text("\n".join(block.lines) + "\n")
            return []
        if block.language == "python":
            program = self.folder / "block.py"
            program.write_text(self._substituted("\n".join(block.lines)))
            return [self._run([sys.executable, str(program)], block, "python")]
        outputs = []
        for command, shown in block.commands():
            if command.startswith(SERVE):
                self._serve(command)
                outputs.append("")
                continue
            words = ["bash", "-c", self._substituted(command)]
            if self._terminal:
                words = ["script", "-qec", f"stty cols {COLUMNS}; {words[-1]}", "/dev/null"]
            output = self._run(words, block, command)
            missing = set(_WORD.findall(_CUT.sub("", "\n".join(shown)))) - set(_WORD.findall(output))
            assert not missing, f"{block.name}: $ {command}\nthe page shows {missing}, the output is:\n{output}"
            outputs.append(output)
        return outputs

    def _run(self, words: list[str], block: Block, command: str) -> str:
        finished = subprocess.run(
            words,
            cwd=ROOT if block.marks.get("in") == "checkout" else self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert finished.returncode == 0, f"{block.name}: $ {command}\n{finished.stdout}"
        output = (
            finished.stdout.replace("\r", "")
            .lstrip("\n")
            .replace(str(self.folder / SCANS.lstrip("/")), SCANS)
            .replace(f"{self.folder}/", "")
        )
        return output.replace(self._address, "localhost:50051") if self._address else output

    def _serve(self, command: str) -> None:
        words = command.removeprefix(SERVE).replace(METRICS_ADDRESS, "127.0.0.1:0").split()
        data, backbone = (self.folder / _taken(words, name) for name in ("--data", "--backbone"))
        words = [str(self.folder / word) if word.endswith(".onnx") else word for word in words]
        server = ServerProcess(data, backbone, *words)
        self._servers.append(server)
        self._address = server.address
        self._environment["SLICEVOTE_SERVER"] = server.address
        if "--metrics" in words:
            self._metrics_address = re.search(r"metrics.*?(127\.0\.0\.1:\d+)", server.log)[1]

    def _substituted(self, text: str) -> str:
        text = text.replace(SCANS, str(self.folder / SCANS.lstrip("/"))).replace(METRICS_ADDRESS, self._metrics_address)
        return ADDRESS.sub(self._address, text)


def _taken(words: list[str], option: str) -> str:
    """Remove an option from a command, and return its value."""
    at = words.index(option)
    _, value = words[at : at + 2]
    del words[at : at + 2]
    return value


def write_outputs(page: Path) -> None:
    """Run a page, and write the real output below the commands of every block that is marked for it."""
    text = page.read_text()
    blocks = blocks_of(page)
    with tempfile.TemporaryDirectory() as scratch, Reader(Path(scratch), blocks, terminal=True) as reader:
        for block in blocks:
            if block.reason_not_to_run:
                continue
            plain = Block(
                block.page, block.line, block.language, tuple(x for x in block.lines if x.startswith("$ ")), block.marks
            )
            if "output" not in block.marks:
                reader.run(block)
                continue
            limit = int(block.marks["output"] or 40)
            lines: list[str] = []
            for (command, _), output in zip(plain.commands(), reader.run(plain), strict=True):
                shown = output.rstrip().splitlines()
                more = ["…"] if len(shown) > limit else []
                lines += [f"$ {command}", *(line.rstrip() for line in shown[:limit]), *more]
            text = text.replace("\n".join(block.lines), "\n".join(lines), 1)
    page.write_text(text)


if __name__ == "__main__":
    for named in sys.argv[1:]:
        write_outputs(Path(named).resolve())
