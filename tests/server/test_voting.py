"""Voting: hand-worked examples, ties, weights, and independence of the order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slicevote_server.voting import (
    CountVotes,
    GaussianVotes,
    Hit,
    HitTable,
    SimilarityVotes,
    is_decided,
    label_votes,
)

volumes = st.sampled_from(["a", "b", "c", "d"])
hits = st.builds(Hit, volumes, st.just(1), st.integers(0, 9), st.floats(-1, 1, width=32))
tables = st.dictionaries(st.integers(0, 29), st.lists(hits, min_size=1, max_size=3), max_size=30)
aggregations = st.sampled_from([CountVotes(), GaussianVotes(), GaussianVotes(0.3), SimilarityVotes()])


def table_of(entries, aggregation=None, slice_count=30):
    table = HitTable(slice_count, aggregation or CountVotes())
    for index, found in entries:
        table.record(index, found)
    return table


def hit(volume, similarity=0.5, index=0):
    return Hit(volume, 1, index, similarity)


def test_count_as_in_the_papers_figure_1():
    # Five query slices; their nearest slices lie in volumes 2, 2, 1, 2 and 3: volume 2 is the most similar.
    table = table_of(enumerate([[hit("v2")], [hit("v2")], [hit("v1")], [hit("v2")], [hit("v3")]]), slice_count=5)
    assert [(candidate.volume_id, candidate.votes) for candidate in table.ranking()] == [
        ("v2", 3),
        ("v1", 1),
        ("v3", 1),
    ]


def test_weighting_lets_the_middle_overrule_the_border():
    # Three border slices for v1, two middle ones for v2: count says v1, the Gaussian v2.
    entries = list(enumerate([[hit("v1")], [hit("v2")], [hit("v2")], [hit("v1")], [hit("v1")]]))
    assert table_of(entries, slice_count=5).ranking()[0].volume_id == "v1"
    weighted = table_of(entries, GaussianVotes(), slice_count=5).ranking()
    assert weighted[0].volume_id == "v2"
    assert weighted[0].votes == pytest.approx(math.exp(-0.5 * (1 / (5 / 6)) ** 2) + 1)


def test_similarity_votes_do_not_go_below_zero():
    table = table_of([(0, [hit("a", -0.4)]), (1, [hit("b", 0.25)])], SimilarityVotes())
    assert table.votes() == {"a": 0.0, "b": 0.25}


def test_ties_go_to_the_greater_similarity_and_then_to_the_lower_id():
    by_similarity = table_of([(0, [hit("a", 0.5)]), (1, [hit("b", 0.6)])]).ranking()
    assert [candidate.volume_id for candidate in by_similarity] == ["b", "a"]
    by_id = table_of([(0, [hit("b", 0.5)]), (1, [hit("a", 0.5)])]).ranking()
    assert [candidate.volume_id for candidate in by_id] == ["a", "b"]


@given(tables, aggregations, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(entries, aggregation, generator: random.Random):
    shuffled = list(entries.items())
    generator.shuffle(shuffled)
    assert table_of(shuffled, aggregation).ranking() == table_of(entries.items(), aggregation).ranking()


@given(tables, aggregations)
def test_votes_sum_to_the_votes_of_the_hits(entries, aggregation):
    table = table_of(entries.items(), aggregation)
    ranking = table.ranking()
    assert math.isclose(
        sum(candidate.votes for candidate in ranking), sum(entry.vote for entry in table.slice_hits()), abs_tol=1e-9
    )
    assert sum(len(candidate.hits) for candidate in ranking) == sum(len(found) for found in entries.values())
    assert {candidate.volume_id: candidate.votes for candidate in ranking} == table.votes()


@given(st.integers(1, 200), st.floats(0.05, 2))
def test_gaussian_is_symmetric_and_greatest_in_the_middle(count, sigma):
    weights = [GaussianVotes(sigma).weight(index, count) for index in range(count)]
    assert weights == pytest.approx(weights[::-1])
    assert max(weights) == weights[(count - 1) // 2]
    assert all(0 <= weight <= 1 for weight in weights)


@given(
    st.lists(st.tuples(volumes, st.floats(0, 1, width=16)), min_size=1, max_size=25),
    aggregations,
    st.integers(0, 25),
)
def test_decided_means_decided(cast, aggregation, seen):
    """Whatever the outstanding slices vote, the leader of a decided search stays the leader."""
    seen = min(seen, len(cast))
    count = len(cast)
    table = table_of([(i, [hit(v, s)]) for i, (v, s) in enumerate(cast[:seen])], aggregation, count)
    outstanding = sum(aggregation.weight(index, count) for index in range(seen, count))
    if is_decided(table.votes(), outstanding):
        leader = table.ranking()[0].volume_id
        for rival in ("a", "b", "c", "d", "e"):
            rest = [(i, [hit(rival, 1.0)]) for i in range(seen, count)]
            early = [(i, [hit(v, s)]) for i, (v, s) in enumerate(cast[:seen])]
            assert table_of(early + rest, aggregation, count).ranking()[0].volume_id == leader


def test_a_draw_is_not_decided():
    assert not is_decided({"a": 3.0, "b": 1.0}, 2.0)
    assert is_decided({"a": 3.0, "b": 1.0}, 1.5)
    assert not is_decided({}, 0.0)


def test_a_draw_but_for_rounding_is_not_decided():
    """As of four slices of which the outer two weigh the same, and the inner two."""
    outer, inner = 0.1, 0.2
    assert (outer + inner) - inner > outer
    assert not is_decided({"a": outer + inner, "b": inner}, outer)


def test_label_votes():
    table = table_of([(0, [hit("a")]), (1, [hit("a")]), (2, [hit("b")]), (3, [hit("c")])])
    labels = {"a": {"region": "chest"}, "b": {"region": "abdomen", "site": "north"}, "c": {"region": "chest"}}
    assert label_votes(table.ranking(), labels.__getitem__) == {
        "region": [("chest", 3.0), ("abdomen", 1.0)],
        "site": [("", 3.0), ("north", 1.0)],
    }


@pytest.mark.parametrize("sigma", [1e-300, 1e-160, 1e-12, 1e300])
def test_extreme_gaussians_weigh_between_nothing_and_one(sigma):
    weights = [GaussianVotes(sigma).weight(index, 11) for index in range(11)]
    assert weights[5] == 1
    assert all(0 <= weight <= 1 for weight in weights)
