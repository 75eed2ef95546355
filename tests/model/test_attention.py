"""Every kernel against the definition; those for accelerators run in an interpreter.

tests/plan shows that they compile for TPUs; for GPUs they are lowered to Triton here.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpus import lowered_for_gpu
from hypothesis import example, given
from hypothesis import strategies as st

from layertap.model.attention import Attend, Shared, attend_dense, attend_flash
from layertap.model.attention_gpu import attend_triton, blocks_for
from layertap.model.attention_tpu import attend_splash
from layertap.model.config import published_config

FLASH, DENSE = jax.jit(attend_flash), jax.jit(attend_dense)
both = pytest.mark.parametrize("attend", [attend_splash, attend_triton])
PUBLISHED = ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")


def _seg_start(length: int, *boundaries: int, padding: int = 0) -> np.ndarray:
    """A row whose samples begin at 0 and at the boundaries, with padding at its end."""
    starts = np.zeros(length, np.int32)
    for boundary in sorted(boundaries):
        starts[boundary:] = boundary
    starts[length - padding :] = np.arange(length - padding, length)
    return starts


def _packed(length: int) -> jax.Array:
    """Two rows: three samples, and one sample with padding behind it."""
    return jnp.asarray(np.stack([_seg_start(length, 100, 300), _seg_start(length, padding=70)]))


def _inputs(length: int, kv_heads: int, group: int, size: int, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """Queries, already scaled, keys and values of two rows."""
    keys = jax.random.split(jax.random.key(length + group), 3)
    query = jax.random.normal(keys[0], (2, length, kv_heads, group, size)) * size**-0.5
    key, value = (jax.random.normal(seed, (2, length, kv_heads, size)) for seed in keys[1:])
    return query.astype(dtype), key.astype(dtype), value.astype(dtype)


def test_dense_is_softmax_over_the_visible_keys() -> None:
    query, key, value = _inputs(8, 1, 1, 4, jnp.float32)
    starts = np.stack([_seg_start(8, 3, 6, 7)] * 2)
    mixed = np.asarray(attend_dense(query, key, value, jnp.asarray(starts)))
    for token, first in enumerate(starts[0]):
        scores = np.asarray(key)[0, first : token + 1, 0] @ np.asarray(query)[0, token, 0, 0]
        weights = np.exp(scores - scores.max())
        expected = (weights / weights.sum()) @ np.asarray(value)[0, first : token + 1, 0]
        np.testing.assert_allclose(mixed[0, token, 0, 0], expected, rtol=1e-4, atol=1e-6)


# --- the loop for CPUs


@pytest.mark.whole
@given(boundaries=st.lists(st.integers(1, 767), max_size=12), padding=st.integers(0, 700))
@example(boundaries=[200], padding=0)  # a sample that begins inside a block, with clear blocks behind it
@example(boundaries=[300], padding=150)
def test_flash_equals_dense_for_any_packing(boundaries: list[int], padding: int) -> None:
    length = 768  # six blocks: some of one or two clear ones, some with one left over
    rows = jnp.asarray(np.stack([_seg_start(length, *boundaries, padding=padding), _seg_start(length)]))
    query, key, value = _inputs(length, 2, 3, 16, jnp.float32)
    inputs = 4 * query, key, value, rows  # some tokens take nearly all of the attention
    np.testing.assert_allclose(FLASH(*inputs), DENSE(*inputs), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("length", [64, 384, *(pytest.param(length, marks=pytest.mark.slow) for length in (128, 512))])
def test_flash_equals_dense_in_bfloat16(length: int) -> None:
    rows = jnp.asarray(np.stack([_seg_start(length, length // 3)] * 2))
    query, key, value = _inputs(length, 2, 7, 64, jnp.bfloat16)
    inputs = 8 * query, key, value, rows
    np.testing.assert_allclose(FLASH(*inputs), DENSE(*inputs), rtol=0.03, atol=0.02)


def test_large_scores_do_not_overflow() -> None:
    query, key, value = _inputs(768, 1, 2, 8, jnp.float32)
    assert np.isfinite(attend_flash(query * 3e3, key * 1e3, value, jnp.zeros((2, 768), jnp.int32))).all()


# --- the kernels for accelerators


@both
@pytest.mark.parametrize(
    ("length", "shape"),  # key-value heads, query heads of each, head size
    [
        (512, (2, 7, 64)),
        pytest.param(512, (4, 7, 128), marks=pytest.mark.slow),
        pytest.param(512, (2, 1, 64), marks=pytest.mark.slow),
        pytest.param(768, (1, 2, 64), marks=pytest.mark.slow),  # no power of two
    ],
)
def test_kernels_equal_dense(attend: Attend, length: int, shape: tuple[int, int, int]) -> None:
    inputs, starts = _inputs(length, *shape, jnp.float32), _packed(length)
    mixed = attend(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


@both
def test_kernels_equal_dense_in_rows_of_several_of_the_largest_blocks(attend: Attend) -> None:
    """Here splash scores half a block of keys at a time, as on a TPU. Samples begin and end on its
    edges, and beside them.
    """
    rows = [_seg_start(2048, 512, 1024, 1536, 2047), _seg_start(2048, 1, 511, 1025, 1985)]
    inputs, starts = _inputs(2048, 1, 1, 64, jnp.float32), jnp.asarray(np.stack(rows))
    mixed = attend(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("attend", [attend_flash, attend_splash, attend_triton])
@pytest.mark.parametrize(("window", "cap"), [(1, None), (100, None), (300, 2.0), (None, 2.0)])
def test_kernels_have_windows_and_caps(attend: Attend, window: int | None, cap: float | None) -> None:
    inputs, starts = _inputs(512, 2, 2, 64, jnp.float32), _packed(512)
    more = {} if attend is attend_flash else {"interpret": True}
    mixed = attend(*inputs, starts, window=window, cap=cap, **more)
    expected = attend_dense(*inputs, starts, window=window, cap=cap)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=2e-6)
    assert not np.allclose(expected, attend_dense(*inputs, starts), atol=1e-3)


def test_a_window_is_so_many_tokens_with_the_token_itself() -> None:
    query, key, value = _inputs(128, 1, 1, 64, jnp.float32)
    mixed = attend_dense(query, key, value, jnp.zeros((2, 128), jnp.int32), window=1)
    np.testing.assert_allclose(mixed[:, :, 0, 0], value[:, :, 0], rtol=1e-6)


# --- behind a prefix


def _prefix(tokens: int, kv_heads: int, size: int, dtype: jnp.dtype = jnp.float32) -> Shared:
    keys, values = (jax.random.normal(seed, (tokens, kv_heads, size)) for seed in jax.random.split(jax.random.key(1)))
    return keys.astype(dtype), values.astype(dtype)


def _with_prefix_in_front(inputs: Sequence[jax.Array], shared: Shared, window: int | None) -> jax.Array:
    """The definition: one sample whose first tokens are the prefix."""
    query, key, value = inputs
    tokens = shared[0].shape[0]
    key, value = (
        jnp.concatenate([jnp.broadcast_to(before[None], (2, *before.shape)), rows], axis=1)
        for before, rows in zip(shared, (key, value), strict=True)
    )
    query = jnp.pad(query, ((0, 0), (tokens, 0), (0, 0), (0, 0), (0, 0)))
    starts = jnp.zeros(query.shape[:2], jnp.int32)
    return attend_dense(query, key, value, starts, window=window)[:, tokens:]


@pytest.mark.parametrize("window", [None, 1, 100, 600])
def test_a_prefix_stands_before_the_sample(window: int | None) -> None:
    inputs, shared = _inputs(256, 1, 2, 16, jnp.float32), _prefix(37, 1, 16)
    mixed = attend_dense(*inputs, jnp.zeros((2, 256), jnp.int32), window=window, shared=shared)
    np.testing.assert_allclose(mixed, _with_prefix_in_front(inputs, shared, window), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", [5, 298, 701])  # one piece, and three with padding
@pytest.mark.parametrize(("window", "cap"), [(None, None), (1, None), (400, 2.0)])
def test_flash_begins_with_the_prefix(tokens: int, window: int | None, cap: float | None) -> None:
    inputs, starts, shared = _inputs(512, 2, 2, 64, jnp.float32), _packed(512), _prefix(tokens, 2, 64)
    mixed = jax.jit(partial(attend_flash, window=window, cap=cap))(*inputs, starts, shared=shared)
    expected = attend_dense(*inputs, starts, window=window, cap=cap, shared=shared)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=2e-6)
    assert np.allclose(expected, attend_dense(*inputs, starts, window=window, cap=cap), atol=1e-3) is (window == 1)


@both
@pytest.mark.parametrize(("window", "cap"), [(None, None), (400, 2.0)])
def test_kernels_begin_with_the_prefix(attend: Attend, window: int | None, cap: float | None) -> None:
    inputs, starts, shared = _inputs(512, 2, 2, 64, jnp.float32), _packed(512), _prefix(298, 2, 64)
    mixed = attend(*inputs, starts, window=window, cap=cap, shared=shared, interpret=True)
    expected = attend_dense(*inputs, starts, window=window, cap=cap, shared=shared)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.whole
@pytest.mark.parametrize("attend", [attend_flash, attend_splash, attend_triton])
def test_kernels_begin_with_the_prefix_in_bfloat16(attend: Attend) -> None:
    inputs, starts, shared = _inputs(256, 2, 2, 64, jnp.bfloat16), _packed(256), _prefix(100, 2, 64, jnp.bfloat16)
    more = {} if attend is attend_flash else {"interpret": True}
    mixed = attend(*inputs, starts, shared=shared, **more)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts, shared=shared), rtol=0.03, atol=0.02)


@both
def test_kernels_equal_dense_in_bfloat16(attend: Attend) -> None:
    inputs, starts = _inputs(512, 2, 7, 64, jnp.bfloat16), _packed(512)
    mixed = attend(*inputs, starts, interpret=True)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=0.03, atol=0.02)


@both
def test_float32_operands_are_multiplied_at_full_precision(attend: Attend) -> None:
    """An interpreter on a CPU is always exact. An accelerator would round operands to bfloat16 or
    tf32 by default.
    """
    traced = str(jax.make_jaxpr(attend)(*_inputs(512, 1, 2, 64, jnp.float32), _packed(512)))
    assert traced.count("dot_general") == traced.count("Precision.HIGHEST, Precision.HIGHEST") >= 2


def test_splash_multiplies_bfloat16_in_one_pass() -> None:
    traced = str(jax.make_jaxpr(attend_splash)(*_inputs(512, 1, 2, 64, jnp.bfloat16), _packed(512)))
    assert "HIGHEST" not in traced


@both
def test_rows_that_no_kernel_can_cut_are_refused(attend: Attend) -> None:
    with pytest.raises(ValueError, match="200 tokens are not a multiple of 128"):
        attend(*_inputs(200, 1, 1, 64, jnp.float32), jnp.zeros((2, 200), jnp.int32), interpret=True)


@pytest.mark.parametrize(
    ("size", "tokens", "dtype"),
    [(size, tokens, jnp.bfloat16) for size in PUBLISHED for tokens in (4096, 9472)]
    + [(size, 4096, jnp.float32) for size in ("0.5b", "7b")],
)
def test_the_gpu_kernel_lowers_to_triton(size: str, tokens: int, dtype: jnp.dtype) -> None:
    """This lowers every published shape for a GPU that is not here. The last row of a ladder need
    not be a power of two.
    """
    config = published_config(size)
    kv_heads, group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    queries = jax.ShapeDtypeStruct((4, tokens, kv_heads, group, config.head_dim), dtype)
    keys = jax.ShapeDtypeStruct((4, tokens, kv_heads, config.head_dim), dtype)
    starts = jax.ShapeDtypeStruct((4, tokens), jnp.int32)
    lowered = lowered_for_gpu(attend_triton, queries, keys, keys, starts)
    assert "attend_packed" in lowered
    capped = lowered_for_gpu(partial(attend_triton, window=1000, cap=50.0), queries, keys, keys, starts)
    assert "attend_packed" in capped
    prefix = jax.ShapeDtypeStruct((298, kv_heads, config.head_dim), dtype)
    begun = lowered_for_gpu(_behind_prefix, queries, keys, keys, starts, prefix, prefix)
    assert "attend_packed" in begun
    assert "triton" in lowered


def _behind_prefix(*given: jax.Array) -> jax.Array:
    return attend_triton(*given[:4], window=1000, shared=given[4:])


@pytest.mark.parametrize("size", [64, 128])
def test_the_blocks_fit_the_shared_memory_of_a_small_card(size: int) -> None:
    """The sizes are as Triton's compiler laid them out. A GeForce of compute capability 8.9 has
    101,376 bytes.
    """
    for dtype, stages, kept_weights in ((jnp.bfloat16, 2, 0), (jnp.float32, 1, 1)):
        queries, keys, *_ = blocks_for(dtype, size)
        numbers = (queries + stages * 2 * keys) * size + kept_weights * queries * keys
        assert numbers * jnp.dtype(dtype).itemsize <= 101_376
