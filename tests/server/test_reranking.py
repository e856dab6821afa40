"""Late interaction against the naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from slicevote_server.reranking import late_interaction


def unit(generator, count, dimension=16):
    vectors = generator.normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(10))
def test_score_is_the_naive_sum_of_greatest_cosines(seed):
    generator = np.random.default_rng(seed)
    query = unit(generator, int(generator.integers(1, 30)))
    volumes = [(range(n), unit(generator, n)) for n in generator.integers(1, 40, size=7).tolist()]
    found = late_interaction(query, volumes)
    for (_, embeddings), interaction in zip(volumes, found, strict=True):
        naive = sum(max(float(one @ other) for other in embeddings) for one in query)
        assert interaction.score == pytest.approx(naive, rel=1e-5)


def test_slab_is_where_the_query_lies():
    generator = np.random.default_rng(3)
    embeddings = unit(generator, 50, 64)
    indices = list(range(100, 150))
    (found,) = late_interaction(embeddings[20:31], [(indices, embeddings)])
    assert found.slab == (120, 129)  # ten of the eleven partners are needed; the first such run
    assert found.score == pytest.approx(11, rel=1e-5)


def test_nothing_to_rank():
    assert late_interaction(np.zeros((1, 4), np.float32), []) == []
