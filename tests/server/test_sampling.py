"""Sampling schemes: the right number, the right gap, in range, unique, and in a useful order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slicevote_server.sampling import (
    AllSlices,
    EvenlySpacedSlices,
    EveryMillimetres,
    EveryNthSlice,
    RandomSlices,
    SamplingScheme,
    plan,
    progressive,
)

gaps = st.lists(st.floats(0.1, 20), min_size=0, max_size=150)
positions = st.builds(lambda start, steps: tuple(np.cumsum([start, *steps]).tolist()), st.floats(-1000, 1000), gaps)
schemes: st.SearchStrategy[SamplingScheme] = st.one_of(
    st.just(AllSlices()),
    st.builds(RandomSlices, st.integers(1, 200), st.integers(0, 2**64 - 1)),
    st.builds(EveryMillimetres, st.floats(0.01, 100)),
    st.builds(EveryNthSlice, st.integers(1, 50)),
    st.builds(EvenlySpacedSlices, st.integers(1, 200)),
)


@given(schemes, positions)
def test_choice_is_in_range_unique_ascending_and_repeatable(scheme, places):
    chosen = scheme.choose(places)
    assert chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= len(places)
    assert 0 <= chosen[0] <= chosen[-1] < len(places)
    assert scheme.choose(places) == chosen


@given(positions, st.integers(1, 200), st.integers(0, 99))
def test_random_gives_as_many_as_asked_or_all(places, count, seed):
    assert len(RandomSlices(count, seed).choose(places)) == min(count, len(places))


def test_random_depends_on_the_seed_and_is_uniform():
    places = tuple(float(index) for index in range(10))
    drawn = np.bincount(np.concatenate([RandomSlices(3, seed).choose(places) for seed in range(3000)]), minlength=10)
    assert drawn.min() > 800  # 900 expected
    assert drawn.max() < 1000


@given(positions, st.floats(0.05, 60))
def test_every_millimetres_gives_the_nearest_slice_of_every_position(places, gap_mm):
    chosen = EveryMillimetres(gap_mm).choose(places)
    wanted = np.arange(places[0], places[-1] + 1e-9, gap_mm)
    # The definition, word by word: of equally near slices either may be meant once rounding is at work.
    distances = np.abs(np.asarray(places)[None, :] - wanted[:, None])
    nearest = set(distances.argmin(axis=1).tolist())
    tied = {int(index) for row in distances for index in np.flatnonzero(row <= row.min() + 1e-5 * gap_mm)}
    assert nearest - tied == set()
    assert set(chosen) <= tied
    assert len(set(chosen) ^ nearest) <= len(tied - nearest) * 2


@pytest.mark.parametrize(
    ("gap_mm", "expected"),
    [(5, [0, 1, 2, 3, 4]), (10, [0, 2, 4]), (7, [0, 1, 3]), (1, [0, 1, 2, 3, 4]), (100, [0]), (20, [0, 4])],
)
def test_every_millimetres_on_a_regular_volume(gap_mm, expected):
    assert EveryMillimetres(gap_mm).choose((0.0, 5.0, 10.0, 15.0, 20.0)) == expected


def test_every_millimetres_where_gaps_vary():
    # Wanted: 0, 5, 10, 15; nearest: 0, 4, 9 (or 11: the lower), 16.
    assert EveryMillimetres(5).choose((0.0, 1.0, 4.0, 9.0, 11.0, 16.0)) == [0, 2, 3, 5]


@pytest.mark.parametrize("gap_mm", [0.1, 0.3, 0.7, 2.5])
def test_every_millimetres_loses_no_slice_to_rounding(gap_mm):
    places = tuple(np.cumsum([0.1] + [gap_mm] * 400).tolist())
    assert EveryMillimetres(gap_mm).choose(places) == list(range(401))


def test_every_nth():
    assert EveryNthSlice(3).choose((0.0,) * 8) == [0, 3, 6]


def test_evenly_spaced_takes_the_middles_of_equal_parts():
    assert EvenlySpacedSlices(4).choose(tuple(range(16))) == [2, 6, 10, 14]
    assert EvenlySpacedSlices(1).choose(tuple(range(9))) == [4]


@given(st.integers(1, 40), st.integers(1, 40), positions)
def test_cost_is_monotone(fewer, more, places):
    low, high = sorted((fewer, more))
    assert len(EveryNthSlice(high).choose(places)) <= len(EveryNthSlice(low).choose(places))
    assert len(RandomSlices(low).choose(places)) <= len(RandomSlices(high).choose(places))
    assert len(EvenlySpacedSlices(low).choose(places)) <= len(EvenlySpacedSlices(high).choose(places))


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=300))
def test_progressive_is_a_permutation(chosen):
    assert sorted(progressive(chosen)) == sorted(chosen)


@given(st.integers(3, 500), st.integers(2, 8))
def test_progressive_covers_the_volume_early(count, levels):
    first = sorted(progressive(range(count))[: 2**levels - 1])
    gaps_between = np.diff([-1, *first, count])
    assert gaps_between.max() <= 2 * count / 2**levels + 2


def test_progressive_begins_in_the_middle():
    assert progressive([10, 11, 12, 13, 14, 15, 16]) == [13, 11, 15, 10, 14, 12, 16]


@given(schemes, positions, st.data())
def test_plan_of_a_slab_stays_in_the_slab(scheme, places, data):
    first = data.draw(st.integers(0, len(places) - 1))
    last = data.draw(st.integers(first, len(places) - 1))
    planned = plan(scheme, places, (first, last))
    assert sorted(planned) == [first + index for index in scheme.choose(places[first : last + 1])]
