"""The secret that patient keys are made with."""

from __future__ import annotations

import os
import stat

import pytest
from slicevote_client.patients import patient_secret


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    if request.param == "no hard links":

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_it_is_made_once_whole_and_for_its_owner_alone(tmp_path):
    file = tmp_path / "configuration" / "secret"
    secret = patient_secret(file)
    assert len(secret) == 64
    assert patient_secret(file) == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.usefixtures("links")
def test_of_two_clients_that_start_at_once_the_first_ones_stays(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    first = patient_secret(file)
    with monkeypatch.context() as looking:
        # The second has looked before the first one made it.
        looking.setattr(type(file), "exists", lambda _: False)
        assert patient_secret(file) == first
    assert list(tmp_path.iterdir()) == [file]
