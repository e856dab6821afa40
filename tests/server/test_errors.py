"""Errors travel between processes."""

from __future__ import annotations

import pickle

import pytest
from slicevote_server import errors

EXAMPLES = [
    errors.InvalidInput("wrong", reason="WRONG", field="header"),
    errors.NotFound("not there", reason="NOT_THERE"),
    errors.NotReady("not yet", reason="NOT_YET"),
    errors.Overloaded("too much", retry_after_s=3),
    errors.ArchiveUnavailable("gone"),
    errors.Cancelled(),
    errors.StartupError("cannot start"),
]


def test_there_is_an_example_of_every_error():
    assert {type(error) for error in EXAMPLES} == {*errors.EngineError.__subclasses__(), errors.StartupError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
