"""Where the time goes: every moment counts once."""

from __future__ import annotations

import contextlib
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slicevote_server import stage_clock
from slicevote_server.stage_clock import Stage, StageClock


class Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(stage_clock, "time", time)
    return time


def test_stages_that_run_together_share_a_moment_and_waiting_yields(time):
    clock = StageClock()
    with clock.running(Stage.WAITING):
        time.now = 1.0
        with clock.running(Stage.DECODING):
            time.now = 3.0
            with clock.running(Stage.EMBEDDING), clock.running(Stage.EMBEDDING):
                time.now = 7.0
    time.now = 8.0
    times = clock.times()
    assert times == stage_clock.StageTimes(
        decoding_s=2.0 + 2.0, embedding_s=2.0, searching_s=0.0, waiting_s=1.0, total_s=8.0
    )


@given(st.lists(st.tuples(st.sampled_from(Stage), st.booleans(), st.floats(0, 10)), max_size=30))
def test_stages_add_up_to_the_total_at_most(steps):
    time = Time()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(stage_clock, "time", time)
        clock = StageClock()
        for stage, enters, seconds in steps:
            if enters:
                stack.enter_context(clock.running(stage))
            time.now += seconds
        times = clock.times()
        *stages, total = astuple(times)
        assert total == pytest.approx(time.now)
        assert sum(stages) <= total + 1e-6
        if steps and steps[0][1]:
            assert sum(stages) == pytest.approx(total)
