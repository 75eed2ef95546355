"""The kernels for accelerators, interpreted, against the definition.

That they compile for TPUs is shown in tests/benchmarks; for GPUs they are lowered to Triton here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpus import lowered_for_gpu

from layertap.model.attention import Attend, attend_dense
from layertap.model.attention_gpu import attend_triton, blocks_for
from layertap.model.attention_tpu import attend_splash
from layertap.model.config import published_config

both = pytest.mark.parametrize("attend", [attend_splash, attend_triton])
PUBLISHED = ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")
SHAPES = {"0.5b": (2, 7, 64), "7b": (4, 7, 128), "mha": (2, 1, 64)}


def _packed(tokens: int) -> jax.Array:
    """Two rows: three samples, and one sample with padding behind it."""
    starts = np.zeros((2, tokens), np.int32)
    starts[0, 100:], starts[0, 300:] = 100, 300
    starts[1, tokens - 70 :] = np.arange(tokens - 70, tokens)
    return jnp.asarray(starts)


def _inputs(tokens: int, kv_heads: int, group: int, size: int, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(tokens), 3)
    query = jax.random.normal(keys[0], (2, tokens, kv_heads, group, size)) * size**-0.5
    key, value = (jax.random.normal(seed, (2, tokens, kv_heads, size)) for seed in keys[1:])
    return query.astype(dtype), key.astype(dtype), value.astype(dtype)


@both
@pytest.mark.parametrize(
    "shape", ["0.5b", *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES if shape != "0.5b")]
)
def test_they_equal_dense(attend: Attend, shape: str) -> None:
    inputs, starts = _inputs(512, *SHAPES[shape], jnp.float32), _packed(512)
    mixed = attend(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


@both
def test_they_equal_dense_in_bfloat16(attend: Attend) -> None:
    inputs, starts = _inputs(512, 2, 7, 64, jnp.bfloat16), _packed(512)
    mixed = attend(*inputs, starts, interpret=True)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=0.03, atol=0.02)


@both
def test_float32_operands_are_multiplied_at_full_precision(attend: Attend) -> None:
    """Interpreted on a CPU they always are: an accelerator would round them to bfloat16 or tf32 unless told."""
    traced = str(jax.make_jaxpr(attend)(*_inputs(512, 1, 2, 64, jnp.float32), _packed(512)))
    assert traced.count("dot_general") == traced.count("Precision.HIGHEST, Precision.HIGHEST") >= 2


def test_splash_multiplies_bfloat16_in_one_pass() -> None:
    traced = str(jax.make_jaxpr(attend_splash)(*_inputs(512, 1, 2, 64, jnp.bfloat16), _packed(512)))
    assert "HIGHEST" not in traced


@pytest.mark.slow
@both
def test_rows_whose_length_is_no_power_of_two(attend: Attend) -> None:
    inputs, starts = _inputs(768, 1, 2, 64, jnp.float32), _packed(768)
    mixed = attend(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


@both
def test_rows_of_several_of_the_largest_blocks(attend: Attend) -> None:
    """Splash then scores half a block of keys at a time, as on a TPU; samples begin and end on and beside its edges."""
    starts = np.zeros((2, 2048), np.int32)
    for row, boundaries in enumerate([(512, 1024, 1536, 2047), (1, 511, 1025, 1985)]):
        for boundary in boundaries:
            starts[row, boundary:] = boundary
    inputs = _inputs(2048, 1, 1, 64, jnp.float32)
    mixed = attend(*inputs, jnp.asarray(starts), interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, jnp.asarray(starts)), rtol=1e-5, atol=2e-6)


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
    """Every published shape, for a GPU that is not here; a ladder's last row need not be a power of two."""
    config = published_config(size)
    kv_heads, group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    queries = jax.ShapeDtypeStruct((4, tokens, kv_heads, group, config.head_dim), dtype)
    keys = jax.ShapeDtypeStruct((4, tokens, kv_heads, config.head_dim), dtype)
    starts = jax.ShapeDtypeStruct((4, tokens), jnp.int32)
    lowered = lowered_for_gpu(attend_triton, queries, keys, keys, starts)
    assert "attend_packed" in lowered
    assert "triton" in lowered


@pytest.mark.parametrize("size", [64, 128])
def test_the_blocks_fit_the_shared_memory_of_a_small_card(size: int) -> None:
    """As Triton's compiler was seen to lay them out; a GeForce of compute capability 8.9 has 101,376 bytes."""
    for dtype, stages, kept_weights in ((jnp.bfloat16, 2, 0), (jnp.float32, 1, 1)):
        queries, keys, _ = blocks_for(dtype, size)
        numbers = (queries + stages * 2 * keys) * size + kept_weights * queries * keys
        assert numbers * jnp.dtype(dtype).itemsize <= 101_376
