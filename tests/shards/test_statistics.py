"""Statistics of parts, merged in any order, equal those of one pass in float64 over the whole."""

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.shards.statistics import TapStatistics, measure, merge_all, no_statistics

HIDDEN = 6


def plain(activations: list[np.ndarray], places: list[int]) -> dict[str, object]:
    """Two passes over everything at once; `places` are the samples' numbers."""
    values = np.concatenate(activations).astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    where = [
        (index, position) for index, part in zip(places, activations, strict=True) for position in range(len(part))
    ]
    top = min((place for place, norm in zip(where, norms, strict=True) if norm == norms.max()))
    return {
        "count": len(values),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "mean_norm": norms.mean(),
        "mean_square_norm": (norms**2).mean(),
        "max_norm": norms.max(),
        "max_sample_idx": top[0],
        "max_position": top[1],
    }


def assert_close_to(found: TapStatistics, expected: dict[str, object], rtol: float = 1e-11) -> None:
    size = np.sqrt(found.mean_square_norm)  # a mean or a deviation near zero is a difference of such values
    for name, value in expected.items():
        lost = 1e-12 * size if name in ("mean", "std") else 0
        assert np.allclose(getattr(found, name), value, rtol=rtol, atol=lost), name


@st.composite
def parts(draw):
    """Samples whose channels may be far from zero, with some massive tokens, as in real models."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    shift = 10.0 ** draw(st.integers(-3, 5)) * rng.standard_normal(HIDDEN)
    scale = 10.0 ** rng.integers(-2, 2, HIDDEN)
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    samples = [(shift + scale * rng.standard_normal((length, HIDDEN))).astype(np.float32) for length in lengths]
    if draw(st.booleans()):
        samples[0][0] *= 1000
    return samples


@given(parts(), st.randoms(use_true_random=False))
def test_merged_in_any_order_they_are_those_of_a_plain_pass(samples, chance):
    measured = [measure(sample, index)[0] for index, sample in enumerate(samples)]
    expected = plain(samples, list(range(len(samples))))
    while len(measured) > 1:  # a random tree of merges
        chance.shuffle(measured)
        measured.append(measured.pop().merge(measured.pop()))
    # Two passes in float64 lose digits themselves where a mean is 1e7 standard deviations away.
    assert_close_to(measured[0], expected, rtol=1e-7)


@given(parts())
def test_where_the_mean_is_near_zero_they_agree_to_nine_digits(samples):
    centred = [sample - samples[0].mean(axis=0) for sample in samples]
    measured = merge_all((measure(sample, index)[0] for index, sample in enumerate(centred)), HIDDEN)
    assert_close_to(measured, plain(centred, list(range(len(samples)))), rtol=1e-9)


@given(parts())
def test_merging_is_commutative_to_the_last_bit_where_it_can_be(samples):
    first, second = measure(samples[0], 3)[0], measure(samples[-1], 2)[0]
    there, back = first.merge(second), second.merge(first)
    assert_close_to(there, {name: getattr(back, name) for name in ("count", "mean", "std", "mean_norm")})
    for name in ("max_norm", "max_sample_idx", "max_position"):
        assert getattr(there, name) == getattr(back, name)


def test_of_equal_norms_the_one_of_the_smallest_sample_and_token_is_named():
    ones = np.ones((300, HIDDEN), np.float32)
    for order in ([4, 2, 9], [9, 4, 2], [2, 9, 4]):
        found = merge_all((measure(ones, index)[0] for index in order), HIDDEN)
        assert (found.max_sample_idx, found.max_position) == (2, 0)


def test_a_deviation_far_below_the_mean_is_kept():
    """The naive E[x^2] - E[x]^2 loses all of it in float64."""
    rng = np.random.default_rng(0)
    values = 1e6 + 1e-3 * rng.standard_normal((5000, HIDDEN))
    found = merge_all((measure(values[begin : begin + 7], 0)[0] for begin in range(0, 5000, 7)), HIDDEN)
    assert np.allclose(found.std, values.std(axis=0), rtol=1e-6)
    assert not np.allclose(
        np.sqrt(np.maximum((values**2).mean(0) - values.mean(0) ** 2, 0)), values.std(axis=0), rtol=0.1
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 129, 1000])
def test_norms_are_those_of_numpy_in_float64(tokens, dtype):
    values = np.random.default_rng(tokens).standard_normal((tokens, 5)).astype(np.dtype(dtype))
    statistics, norms = measure(values, 0)
    assert np.allclose(norms, np.linalg.norm(values.astype(np.float64), axis=1), rtol=1e-14)
    assert statistics.count == tokens


def test_nothing_merged_with_something_is_that():
    something, _ = measure(np.ones((2, 3), np.float32), 7)
    for merged in (something.merge(no_statistics(3)), no_statistics(3).merge(something)):
        assert_close_to(merged, {name: getattr(something, name) for name in ("count", "mean", "std", "max_norm")})
        assert merged.max_sample_idx == 7
    assert no_statistics(3).std.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_passes_without_a_warning(value):
    found, norms = measure(np.array([[value, 1.0], [1.0, 2.0]], np.float32), 0)
    assert not np.isfinite(norms[0])
    assert found.merge(found).count == 2
    assert found.mean.tolist() == [1, 2]


@given(parts(), st.data())
def test_tokens_that_are_not_finite_are_left_out(samples, data):
    """The rest is measured as if they did not exist, but keeps its positions."""
    for index, sample in enumerate(samples):
        finite = np.array(data.draw(st.lists(st.booleans(), min_size=len(sample), max_size=len(sample))))
        broken = sample.copy()
        broken[~finite, data.draw(st.integers(0, HIDDEN - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        statistics, norms = measure(broken, index)
        assert np.array_equal(np.isfinite(norms), finite)
        if not finite.any():
            assert statistics.count == 0
            continue
        expected = plain([sample[finite]], [index])
        expected["max_position"] = np.flatnonzero(finite)[expected["max_position"]]
        assert_close_to(statistics, expected)
