"""What is kept of every source between runs: its slices' embeddings and its hits, one file each.

A file is written whole or not at all, and one that cannot be read is as good as none: a run that was killed goes on
where it stopped.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from slicevote_volumes import Problem

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class VolumeSlices:
    """What is known of a volume without its vectors.

    Attributes:
        positions_mm: Position of every slice, ascending.
        indices: The slices that are not blank, ascending.
    """

    positions_mm: tuple[float, ...]
    indices: tuple[int, ...]

    @property
    def slice_count(self) -> int:
        """Slices, blank or not."""
        return len(self.positions_mm)

    @property
    def blank_count(self) -> int:
        """Slices without contrast."""
        return self.slice_count - len(self.indices)


@dataclass(frozen=True)
class Contents:
    """What a source holds.

    Attributes:
        volumes: In the order in which the source holds them.
        problems: What could not be used of it.
    """

    volumes: tuple[VolumeSlices, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """A source's volumes and their embeddings.

    Attributes:
        contents: The volumes.
        embeddings: float32 [N, D]: the slices of the first volume, then those of the second, and so on.
    """

    contents: Contents
    embeddings: NDArray[np.float32]

    @property
    def volumes(self) -> tuple[VolumeSlices, ...]:
        """In the order in which the source holds them."""
        return self.contents.volumes

    def rows(self, ordinal: int) -> slice:
        """Gives where the embeddings of a volume lie."""
        start = sum(len(volume.indices) for volume in self.volumes[:ordinal])
        return slice(start, start + len(self.volumes[ordinal].indices))


class EmbeddingStore:
    """Embeddings of one backbone under one policy, by the sources' keys.

    Args:
        folder: Where they lie; created if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def describe(self, key: str) -> Contents | None:
        """Says what a source holds without reading the vectors; None for one that is not there."""
        try:
            with np.load(self._file(key)) as stored:
                return _contents(stored)
        except _UNREADABLE:
            return None

    def load(self, key: str) -> Embedded:
        """Reads a source.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        with np.load(self._file(key)) as stored:
            return Embedded(_contents(stored), stored["embeddings"])

    def save(self, key: str, embedded: Embedded) -> None:
        """Writes a source."""
        contents = embedded.contents
        about = json.dumps(
            {
                "volumes": [asdict(volume) for volume in contents.volumes],
                "problems": [[str(problem.path), problem.reason] for problem in contents.problems],
            }
        )
        _write(self._file(key), {"about": _bytes(about), "embeddings": embedded.embeddings})

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


@dataclass(frozen=True)
class Found:
    """The hits of a source's slices in one index.

    Attributes:
        names: Volumes that were hit.
        volumes: int32 [N, K]: places in `names`; -1 where the index had no more.
        slices: int32 [N, K]: the slices that were hit.
        similarities: float64 [N, K].
        exhaustive: The index compared exhaustively.
    """

    names: tuple[str, ...]
    volumes: NDArray[np.int32]
    slices: NDArray[np.int32]
    similarities: NDArray[np.float64]
    exhaustive: bool


class HitStore:
    """Hits in one index, by what was asked.

    Args:
        folder: Where they lie; created if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> Found | None:
        """Reads the hits of a source; None where there are none."""
        try:
            with np.load(self._folder / f"{key}.npz") as stored:
                about = json.loads(stored["about"].tobytes())
                return Found(
                    tuple(about["names"]),
                    stored["volumes"],
                    stored["slices"],
                    stored["similarities"],
                    about["exhaustive"],
                )
        except _UNREADABLE:
            return None

    def save(self, key: str, found: Found) -> None:
        """Writes the hits of a source."""
        about = json.dumps({"names": found.names, "exhaustive": found.exhaustive})
        _write(
            self._folder / f"{key}.npz",
            {
                "about": _bytes(about),
                "volumes": found.volumes,
                "slices": found.slices,
                "similarities": found.similarities,
            },
        )


def _contents(stored: Mapping[str, NDArray[np.uint8]]) -> Contents:
    about = json.loads(stored["about"].tobytes())
    return Contents(
        tuple(VolumeSlices(tuple(volume["positions_mm"]), tuple(volume["indices"])) for volume in about["volumes"]),
        tuple(Problem(Path(path), reason) for path, reason in about["problems"]),
    )


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _write(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    scratch.replace(path)
