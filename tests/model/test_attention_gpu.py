"""The GPU kernel, interpreted, against the definition, and lowered to Triton for real shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layertap.model.attention import attend_dense
from layertap.model.attention_gpu import attend_triton


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


@pytest.mark.parametrize(
    ("kv_heads", "group", "size"), [(2, 7, 64), (4, 7, 128), (2, 1, 64)], ids=["0.5b", "7b", "mha"]
)
def test_triton_equals_dense(kv_heads: int, group: int, size: int) -> None:
    inputs, starts = _inputs(512, kv_heads, group, size, jnp.float32), _packed(512)
    mixed = attend_triton(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


def test_triton_equals_dense_in_bfloat16() -> None:
    inputs, starts = _inputs(512, 2, 7, 64, jnp.bfloat16), _packed(512)
    mixed = attend_triton(*inputs, starts, interpret=True)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=0.03, atol=0.02)


def test_rows_whose_length_is_no_power_of_two() -> None:
    inputs, starts = _inputs(768, 1, 2, 64, jnp.float32), _packed(768)
    mixed = attend_triton(*inputs, starts, interpret=True)
    np.testing.assert_allclose(mixed, attend_dense(*inputs, starts), rtol=1e-5, atol=2e-6)


def test_rows_that_the_kernel_cannot_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="200 tokens are not a multiple of 128"):
        attend_triton(*_inputs(200, 1, 1, 64, jnp.float32), jnp.zeros((2, 200), jnp.int32), interpret=True)


@pytest.mark.parametrize(("kv_heads", "group", "size"), [(2, 7, 64), (2, 6, 128), (4, 7, 128), (8, 8, 128)])
def test_it_lowers_to_triton(kv_heads: int, group: int, size: int) -> None:
    """Every published shape, for a GPU that is not here."""
    queries = jax.ShapeDtypeStruct((4, 4096, kv_heads, group, size), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((4, 4096, kv_heads, size), jnp.bfloat16)
    starts = jax.ShapeDtypeStruct((4, 4096), jnp.int32)
    lowered = jax.jit(attend_triton).trace(queries, keys, keys, starts).lower(lowering_platforms=("cuda",))
    assert "attend_packed" in lowered.as_text()
    assert "triton" in lowered.as_text()
