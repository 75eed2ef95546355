"""What encoding measures in float32, by numpy or by loops, is exact within a millionth."""

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.shards import compiled
from layertap.shards.measuring import measure_in_float32
from layertap.shards.statistics import measure

MILLIONTH = 1e-6
EITHER_WAY = pytest.mark.parametrize("by_loops", [False, True], ids=["numpy", "loops"])


def assert_as_exact(values: np.ndarray, number: int = 3, *, by_loops: bool) -> None:
    found, norms = measure_in_float32(values, number, by_loops=by_loops)
    exact, exact_norms = measure(values, number)
    assert np.allclose(norms, exact_norms, rtol=MILLIONTH, equal_nan=True)
    assert found.count == exact.count
    assert np.allclose(found.std, exact.std, rtol=MILLIONTH, atol=1e-12)
    assert (abs(found.mean - exact.mean) <= MILLIONTH * exact.std + 1e-12).all()
    for name in ("mean_norm", "mean_square_norm", "max_norm"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=MILLIONTH)
    assert (found.max_sample_idx, found.max_position) == (exact.max_sample_idx, exact.max_position)


@st.composite
def activations(draw):
    """Channels that lie up to ten thousand deviations away from zero, and some massive tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    tokens, width = draw(st.integers(1, 2500)), draw(st.sampled_from([1, 6, 64]))
    shift = 10.0 ** draw(st.integers(-2, 4)) * rng.standard_normal(width)
    values = shift + 10.0 ** rng.uniform(-0.5, 2, width) * rng.standard_normal((tokens, width))
    for massive in draw(st.lists(st.integers(0, tokens - 1), max_size=3)):
        values[massive] *= 1000
    return values.astype(draw(st.sampled_from(["float32", "bfloat16"])))


@EITHER_WAY
@given(values=activations())
def test_it_is_what_is_measured_exactly(by_loops, values):
    assert_as_exact(values, by_loops=by_loops)


@EITHER_WAY
def test_massive_tokens_where_the_pivot_is_taken_cost_no_digits(by_loops):
    values = np.random.default_rng(0).standard_normal((16 * 100, 8)).astype(np.float32)
    values[50::100] += 1e4
    assert_as_exact(values, by_loops=by_loops)


@EITHER_WAY
@pytest.mark.parametrize("width", [10_001, 300_000])
def test_channels_may_be_more_than_a_block_has_room_for(width, by_loops):
    assert_as_exact(np.random.default_rng(0).standard_normal((40, width)).astype("bfloat16"), by_loops=by_loops)


@EITHER_WAY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e19, 3e38])
def test_what_leaves_the_range_of_float32_when_squared_is_measured_all_the_same(dtype, size, by_loops):
    values = (size * np.array([[1.0, 0.5], [0.25, 1.0], [0.5, 0.5]])).astype(np.dtype(dtype))
    found, norms = measure_in_float32(values, 0, by_loops=by_loops)
    exact, exact_norms = measure(values, 0)
    assert np.array_equal(norms, exact_norms)
    assert np.array_equal(found.m2, exact.m2)


@EITHER_WAY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("token", [0, 8, 100])
def test_what_is_not_finite_is_left_out_without_a_warning(value, token, dtype, by_loops):
    values = np.random.default_rng(0).standard_normal((300, 5)).astype(np.dtype(dtype))
    values[token, 2] = value
    assert_as_exact(values, by_loops=by_loops)


@EITHER_WAY
@pytest.mark.parametrize("tokens", [0, 1, 700])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_values_are_left_in_float32_for_who_stores_them(tokens, dtype, by_loops):
    values = np.random.default_rng(0).standard_normal((tokens, 600)).astype(np.dtype(dtype))
    widened = np.full(values.shape, np.nan, np.float32)
    plain, norms = measure_in_float32(values, 0, by_loops=by_loops)
    again, same_norms = measure_in_float32(values, 0, widened, by_loops=by_loops)
    assert np.array_equal(widened, values.astype(np.float32))
    assert np.array_equal(norms, same_norms)
    assert np.array_equal(plain.m2, again.m2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_loops_widen_every_number_as_numpy_does(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(np.dtype(dtype)).reshape(64, 1024)
    widened = np.empty(values.shape, np.float32)
    compiled.sums(values, np.zeros(1024, np.float32), widened)
    expected = values.astype(np.float32)
    assert np.array_equal(widened, expected, equal_nan=True)
    assert np.array_equal(np.signbit(widened), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loops_take_what_is_not_writable_and_not_in_one_piece(dtype):
    values = np.random.default_rng(0).standard_normal((120, 64)).astype(np.dtype(dtype))
    values.flags.writeable = False
    assert_as_exact(values, by_loops=True)
    assert_as_exact(values[::2, ::3], by_loops=True)
    assert_as_exact(np.broadcast_to(values[0], (40, 64)), by_loops=True)
