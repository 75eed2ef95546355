"""The flash loop against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layertap.model.attention import attend_dense, attend_flash

FLASH, DENSE = jax.jit(attend_flash), jax.jit(attend_dense)


def _seg_start(boundaries: list[int], length: int) -> np.ndarray:
    starts = np.zeros(length, np.int32)
    for boundary in sorted(boundaries):
        starts[boundary:] = boundary
    return starts


def _inputs(length: int, kv_heads: int, group: int, size: int, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(length + group), 3)
    query = jax.random.normal(keys[0], (2, length, kv_heads, group, size)).astype(dtype)
    key = jax.random.normal(keys[1], (2, length, kv_heads, size)).astype(dtype)
    return query, key, jax.random.normal(keys[2], key.shape).astype(dtype)


@given(boundaries=st.lists(st.integers(1, 767), max_size=12), padding=st.integers(0, 700))
@example(boundaries=[200], padding=0)  # a sample that begins inside a block, with clear blocks behind it
@example(boundaries=[300], padding=150)
def test_flash_equals_dense_for_any_packing(boundaries: list[int], padding: int) -> None:
    length = 768  # six blocks: some of one or two clear ones, some with one left over
    starts = _seg_start(boundaries, length)
    starts[length - padding :] = np.arange(length - padding, length)
    rows = jnp.asarray(np.stack([starts, _seg_start([], length)]))
    inputs = _inputs(length, 2, 3, 16, jnp.float32)
    np.testing.assert_allclose(FLASH(*inputs, rows), DENSE(*inputs, rows), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("length", [64, 384, *(pytest.param(length, marks=pytest.mark.slow) for length in (128, 512))])
def test_flash_equals_dense_in_bfloat16(length: int) -> None:
    rows = jnp.asarray(np.stack([_seg_start([length // 3], length)] * 2))
    inputs = _inputs(length, 2, 7, 64, jnp.bfloat16)
    np.testing.assert_allclose(FLASH(*inputs, rows), DENSE(*inputs, rows), rtol=0.03, atol=0.02)


def test_dense_is_softmax_over_the_visible_keys() -> None:
    query, key, value = _inputs(8, 1, 1, 4, jnp.float32)
    starts = jnp.asarray(np.array([[0, 0, 0, 3, 3, 3, 6, 7]] * 2, np.int32))
    mixed = np.asarray(attend_dense(query, key, value, starts))
    for token, first in enumerate(np.asarray(starts)[0]):
        scores = np.asarray(key)[0, first : token + 1, 0] @ np.asarray(query)[0, token, 0, 0]
        weights = np.exp(scores - scores.max())
        expected = (weights / weights.sum()) @ np.asarray(value)[0, first : token + 1, 0]
        np.testing.assert_allclose(mixed[0, token, 0, 0], expected, rtol=1e-4, atol=1e-6)


def test_large_scores_do_not_overflow() -> None:
    query, key, value = _inputs(768, 1, 2, 8, jnp.float32)
    starts = jnp.zeros((2, 768), jnp.int32)
    mixed = attend_flash(query * 1e3, key * 1e3, value, starts)
    assert np.isfinite(mixed).all()
