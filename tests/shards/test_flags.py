import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.taps import Tap
from layertap.shards.flags import FIRST, SINK, SINK_FACTOR, SPECIAL, shard_flags
from layertap.shards.samples import StoredSample
from layertap.shards.statistics import measure_shard

TAP = Tap(0, "residual")
FLOAT32 = np.dtype(np.float32)


def sample(norms, token_ids=None) -> StoredSample:
    """A sample whose activations have these norms."""
    activation = np.zeros((len(norms), 4), np.float32)
    activation[:, 1] = norms
    ids = np.array(range(10, 10 + len(norms)) if token_ids is None else token_ids, np.int32)
    return StoredSample(0, "task", "prompt", ids, {TAP: activation})


def flags(samples, special=frozenset(), dtype=FLOAT32):
    _, norms = measure_shard(samples, TAP, dtype, 4)
    return [found.tolist() for found in shard_flags(samples, norms, special)]


def test_the_first_token_of_each_sample_is_flagged():
    assert flags([sample([1, 1, 1]), sample([1]), sample([1, 1])]) == [[FIRST, 0, 0], [FIRST], [FIRST, 0]]


def test_special_tokens_are_flagged_wherever_they_stand():
    assert flags([sample([1, 1, 1, 1], [7, 4, 9, 7])], frozenset({7, 9})) == [[FIRST | SPECIAL, 0, SPECIAL, SPECIAL]]


def test_a_norm_above_ten_times_the_shards_median_is_a_sink():
    # The median is that of all seven tokens: 2.
    assert flags([sample([500, 2, 2]), sample([1, 20, 20.1, 2])]) == [[FIRST | SINK, 0, 0], [FIRST, 0, SINK, 0]]


def test_the_norm_is_that_of_what_is_stored():
    """1.001 is 1 in bfloat16, and 10.03 is 10."""
    rows = [1.001, 1.001, 10.03, 1.001]
    assert flags([sample(rows)]) == [[FIRST, 0, SINK, 0]]
    assert flags([sample(rows)], dtype=outputs.shard_format(dtype="bfloat16").dtype) == [[FIRST, 0, 0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_moves_no_median(value):
    found = flags([sample([1, 1, 30, value])])
    assert found[0][:3] == [FIRST, 0, SINK]
    assert flags([sample([value])])[0][0] & FIRST


@given(st.lists(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=9), min_size=1, max_size=5))
def test_sinks_are_those_that_a_plain_computation_finds(norms):
    median = np.median(np.concatenate(norms))
    expected = [[bool(norm > SINK_FACTOR * median) for norm in row] for row in norms]
    assert [[bool(value & SINK) for value in row] for row in flags([sample(row) for row in norms])] == expected
