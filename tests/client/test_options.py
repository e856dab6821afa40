"""The short texts of the command line and of `Client.search`."""

from __future__ import annotations

import pytest
from slicevote_client import InvalidOption
from slicevote_client.options import aggregation_message, index_value, sampling_message

WRONG_SAMPLINGS = (
    *("", "some", "ALL", "all:1", "random", "random:", "random:0", "random:x", "random:-1", "random:4294967296"),
    *("random:5:-1", "random:5:6:7", "random:5:18446744073709551616", "mm", "mm:0", "mm:nan", "mm:inf", "mm:-1"),
    *("nth:0", "nth:1.5", "even:0", "even:²"),
)


@pytest.mark.parametrize("text", WRONG_SAMPLINGS)
def test_a_wrong_sampling_teaches_the_forms(text):
    with pytest.raises(InvalidOption, match=r"is no sampling; the forms are: all; random:N or random:N:SEED; mm:GAP"):
        sampling_message(text)


@pytest.mark.parametrize("text", ["", "all", "slicewise", "slice_wise", "count:1", "gaussian:0", "gaussian:nan"])
def test_a_wrong_aggregation_teaches_the_forms(text):
    with pytest.raises(InvalidOption, match=r"is no aggregation; the forms are: count; gaussian or gaussian:SIGMA"):
        aggregation_message(text)


def test_right_forms():
    assert sampling_message("all").WhichOneof("scheme") == "all"
    seeded = sampling_message("random:20:7").random
    assert (seeded.count, seeded.seed) == (20, 7)
    assert sampling_message("mm:2.5").every_millimetres.gap_mm == 2.5
    assert sampling_message("nth:3").every_nth.step == 3
    assert sampling_message("even:16").evenly_spaced.count == 16
    assert aggregation_message("gaussian:0.2").gaussian.sigma == 0.2
    assert not aggregation_message("gaussian").gaussian.HasField("sigma")
    assert aggregation_message("slice-wise").WhichOneof("method") == "slice_wise"


def test_a_wrong_index():
    with pytest.raises(InvalidOption, match="'btree' is no index; the indexes are hnsw, lsh, exact"):
        index_value("btree")
