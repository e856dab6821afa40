"""A backbone with its archive: what is recorded with the first volumes, and refused for later ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slicevote_server.engine import Engine, EngineSettings
from slicevote_server.errors import NotReady
from slicevote_server.runtime import RuntimeSettings
from slicevote_server.served_backbone import ServedBackbone

from tests.support.archives import unit, volume

OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def served(tmp_path: Path, tiny_backbone: Path) -> Iterator[ServedBackbone]:
    settings = EngineSettings(runtime=RuntimeSettings("cpu"))
    with contextlib.closing(Engine(tmp_path / "data", [tiny_backbone], settings)) as engine:
        yield engine.backbone()


def put(served: ServedBackbone, name: str, fingerprint: str, *, patient: str) -> bool:
    entry = volume(name, unit(np.random.default_rng(0), 2, served.backbone.dimension), patient=patient)
    return served.put(*entry, patient_secret_fingerprint=fingerprint)


def test_patient_keys_of_another_secret_are_refused(served):
    put(served, "without a patient", OURS, patient="")
    assert served.archive.provenance().patient_secret_fingerprint == ""
    put(served, "ours", OURS, patient="p")
    assert served.archive.provenance().patient_secret_fingerprint == OURS
    for name in ("theirs", "ours"):
        with pytest.raises(NotReady, match=f"another secret .fingerprint {THEIRS}. than those .* .{OURS}.") as refused:
            put(served, name, THEIRS, patient="p")
        assert refused.value.reason == "PATIENT_SECRET_DIFFERS"
    assert set(served.archive.revisions()) == {"without a patient", "ours"}
    put(served, "theirs, without a patient", THEIRS, patient="")
    put(served, "secret not named", "", patient="p")
    assert put(served, "ours", OURS, patient="p") is True
    assert served.lsh.is_in_step()


def test_an_archive_without_patient_keys_is_bound_to_no_secret(served):
    put(served, "v", OURS, patient="p")
    served.delete("v")
    put(served, "w", THEIRS, patient="p")
    assert served.archive.provenance().patient_secret_fingerprint == THEIRS
