"""Embeds every slice of every case once, and keeps the embeddings between runs, one file a case.

A file is written whole or not at all, and one that cannot be read counts as missing, so a run that was killed can be
continued.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from slicevote_server.archive.interface import IndexedSlices
from slicevote_server.engine import EngineSettings
from slicevote_server.errors import InvalidInput
from slicevote_server.intake import Intake, VolumeHeader
from slicevote_server.served_backbone import ServedBackbone
from slicevote_server.session import Session
from slicevote_volumes import Problem, VolumeError, discover

from slicevote_evaluation.datasets import Case
from slicevote_evaluation.progress import Reporter
from slicevote_evaluation.published import MODALITY

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_CASES_AT_A_TIME = 3  # one in the backbone, one being read, one being written
_CASES_IN_MEMORY = 128


@dataclass(frozen=True)
class VolumeOutline:
    """A volume without its embeddings.

    Attributes:
        positions_mm: Position of every slice, ascending.
        indices: The slices that are not blank, ascending.
    """

    positions_mm: tuple[float, ...]
    indices: tuple[int, ...]

    @property
    def blank_count(self) -> int:
        """Number of slices without contrast."""
        return len(self.positions_mm) - len(self.indices)


@dataclass(frozen=True)
class CaseContents:
    """What was found in a case.

    Attributes:
        volumes: Its volumes; none if it could not be used.
        problems: What could not be used.
    """

    volumes: tuple[VolumeOutline, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def slice_count(self) -> int:
        """Number of slices that have an embedding."""
        return sum(len(volume.indices) for volume in self.volumes)


class EmbeddingStore:
    """A folder of embeddings, all computed in one way.

    Args:
        folder: The folder; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Late interaction reads the same volumes again and again.
        self.load = lru_cache(_CASES_IN_MEMORY)(self._load)

    def contents(self, case: Case) -> CaseContents | None:
        """Return what is in a case without reading its embeddings; None if it has not been embedded."""
        try:
            with np.load(self._file(case.key)) as stored:
                return _contents(stored["contents"])
        except _UNREADABLE:
            return None

    def save(self, case: Case, contents: CaseContents, embeddings: NDArray[np.float32]) -> None:
        """Write a case.

        Args:
            case: The case.
            contents: What is in it.
            embeddings: float32 [N, D]: the slices of the first volume, then those of the second, and so on.
        """
        text = json.dumps(asdict(contents), default=str)
        scratch = self._file(case.key).with_suffix(".part")
        with scratch.open("wb") as stream:
            np.savez(stream, contents=np.frombuffer(text.encode(), np.uint8), embeddings=embeddings)
        scratch.replace(self._file(case.key))

    def _load(self, key: str) -> tuple[IndexedSlices, ...]:
        """Return the slices of every volume of the case with this key."""
        with np.load(self._file(key)) as stored:
            volumes, embeddings = _contents(stored["contents"]).volumes, stored["embeddings"]
        ends = np.cumsum([len(volume.indices) for volume in volumes])
        return tuple(
            IndexedSlices(volume.indices, rows, (b"",) * len(rows))
            for volume, rows in zip(volumes, np.split(embeddings, ends[:-1]), strict=True)
        )

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


@dataclass
class EmbeddedCases:
    """What embedding all cases gave.

    Attributes:
        contents: What is in every case that could be read, by the case's name.
        problems: What could not be used.
        embedded_count: Number of slices that were embedded.
        reused_count: Number of slices whose embeddings an earlier run left.
    """

    contents: dict[str, CaseContents] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    embedded_count: int = 0
    reused_count: int = 0


def embed_cases(
    cases: Sequence[Case],
    served: ServedBackbone,
    settings: EngineSettings,
    store: EmbeddingStore,
    on_embedded: Callable[[Case, CaseContents], None],
    reporter: Reporter,
) -> EmbeddedCases:
    """Embed every case that is not in the store.

    Args:
        cases: The cases.
        served: The backbone.
        settings: The intensity policy and the batch size.
        store: Where embeddings are kept.
        on_embedded: Called with every case that is in the store, from several threads.
        reporter: Told about the progress.
    """

    def embed(case: Case) -> tuple[CaseContents, bool]:
        kept = store.contents(case)
        contents = _embed(case, served, settings, store) if kept is None else kept
        if contents.volumes:
            on_embedded(case, contents)
        return contents, kept is None

    embedded = EmbeddedCases()
    with (
        reporter.stage(f"embedding with {served.backbone.name}", len(cases), "cases") as advance,
        ThreadPoolExecutor(_CASES_AT_A_TIME, "case") as executor,
    ):
        for case, (contents, is_new) in zip(cases, executor.map(embed, cases), strict=True):
            if is_new:
                embedded.embedded_count += contents.slice_count
            else:
                embedded.reused_count += contents.slice_count
            embedded.problems += contents.problems
            if contents.volumes:
                embedded.contents[case.name] = contents
            advance(1)
    return embedded


def _embed(case: Case, served: ServedBackbone, settings: EngineSettings, store: EmbeddingStore) -> CaseContents:
    """Read and embed a case, and store it if it could be used."""
    found = discover([case.path], modality=case.labels[MODALITY])
    problems = list(found.problems)
    if not found.volumes and not problems:
        problems.append(Problem(case.path, "holds no scan"))
    outlines, embeddings = [], [np.empty((0, served.backbone.dimension), np.float32)]
    try:
        for volume in found.volumes:
            header = VolumeHeader(volume.id, volume.modality, volume.positions_mm, volume.intensity_range())
            session = Session(Intake(header, range(len(volume)), settings.policy, thumbnails=False), [served.embedder])
            indices: list[int] = []
            for start in range(0, len(volume), settings.batch_size):
                batch = range(start, min(start + settings.batch_size, len(volume)))
                taken = session.take(volume.slices(batch))
                indices += [entry.index for entry in taken.visible]
                embeddings += taken.embeddings
            outlines.append(VolumeOutline(volume.positions_mm, tuple(indices)))
    except VolumeError as error:
        return CaseContents((), (*problems, Problem(error.path or case.path, error.reason)))
    except InvalidInput as error:
        return CaseContents((), (*problems, Problem(case.path, str(error))))
    finally:
        for volume in found.volumes:
            volume.release()
    contents = CaseContents(tuple(outlines), tuple(problems))
    if outlines:
        store.save(case, contents, np.concatenate(embeddings))
    return contents


def _contents(stored: NDArray[np.uint8]) -> CaseContents:
    fields: dict[str, Any] = json.loads(stored.tobytes())
    return CaseContents(
        tuple(VolumeOutline(tuple(volume["positions_mm"]), tuple(volume["indices"])) for volume in fields["volumes"]),
        tuple(Problem(Path(problem["path"]), problem["reason"]) for problem in fields["problems"]),
    )
