"""Causal attention over packed rows on GPU: one Pallas kernel, compiled by Triton (Ampere and later).

Each program takes one block of queries of one head, and walks over key blocks with an online softmax, from the first
one that the block's first query needs up to the diagonal: as on CPU (`attention.py`), a packed row pays nothing for its
neighbours. Key-value heads are found by index, so they are never repeated for the query heads of a group.

Not taken: JAX's own Triton kernel (segment ids, but it visits every block below the diagonal, and repeats key-value
heads), and cuDNN's packed layout (Hopper only, through a private function of JAX, bfloat16 only). Shapes as in
`attention.py`. Scores and sums are float32; float32 operands are multiplied at full precision, not as TF32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from layertap.model.attention import Keys, Queries, SegStart

_QUERY_BLOCK = 128
_KEY_BLOCK = 64
_MASKED = -1e30


def attend_triton(
    queries: Queries, keys: Keys, values: Keys, seg_start: SegStart, *, interpret: bool = False
) -> Float[Array, "B T K G D"]:
    """Attention of scaled queries; T must be a multiple of 128, D a power of two. `interpret` needs no GPU."""
    rows, tokens, kv_heads, group, size = queries.shape
    if tokens % _QUERY_BLOCK:
        raise ValueError(f"rows of {tokens} tokens are not a multiple of {_QUERY_BLOCK}")
    query_block = pl.BlockSpec((None, _QUERY_BLOCK, None, size), lambda row, head, block: (row, block, head, 0))
    all_keys = pl.BlockSpec((None, tokens, None, size), lambda row, head, _block: (row, 0, head // group, 0))
    kernel = pl.pallas_call(
        _attend_block,
        grid=(rows, kv_heads * group, tokens // _QUERY_BLOCK),
        in_specs=[
            query_block,
            all_keys,
            all_keys,
            pl.BlockSpec((None, _QUERY_BLOCK), lambda row, _h, block: (row, block)),
        ],
        out_specs=query_block,
        out_shape=jax.ShapeDtypeStruct((rows, tokens, kv_heads * group, size), values.dtype),  # type: ignore[no-untyped-call]
        compiler_params=triton.CompilerParams(num_warps=4 if size <= 64 else 8, num_stages=2),
        interpret=interpret,
        name="attend_packed",
    )
    mixed = kernel(queries.reshape(rows, tokens, kv_heads * group, size), keys, values, seg_start)
    return mixed.reshape(queries.shape)


def _attend_block(query_ref, key_ref, value_ref, start_ref, mixed_ref) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Attention of query block [q, D] of one head over keys and values [T, D]."""
    query, starts = query_ref[...], start_ref[...]
    first = pl.program_id(2) * _QUERY_BLOCK
    rows = first + jnp.arange(_QUERY_BLOCK)
    product = partial(pl.dot, allow_tf32=False)

    def key_block(j, carry):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        mixed, maximum, total = carry
        span = pl.ds(j * _KEY_BLOCK, _KEY_BLOCK)
        columns = j * _KEY_BLOCK + jnp.arange(_KEY_BLOCK)
        visible = (columns[None, :] >= starts[:, None]) & (columns[None, :] <= rows[:, None])
        scores = jnp.where(visible, product(query, key_ref[span, :], trans_b=True), _MASKED)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1))
        # A query with no key in this block has met none yet: its maximum is still the mask, and exp(0) must not count.
        weights = jnp.where(visible, jnp.exp(scores - new_maximum[:, None]), 0.0)
        shrink = jnp.exp(maximum - new_maximum)
        summed = product(weights.astype(value_ref.dtype), value_ref[span, :])
        return mixed * shrink[:, None] + summed, new_maximum, total * shrink + jnp.sum(weights, axis=1)

    nothing = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full((_QUERY_BLOCK,), _MASKED, jnp.float32),
        jnp.zeros((_QUERY_BLOCK,), jnp.float32),
    )
    # `seg_start` never falls inside a row, so the block's first query needs the earliest keys of all of them.
    bounds = jnp.min(starts) // _KEY_BLOCK, (first + _QUERY_BLOCK) // _KEY_BLOCK
    mixed, _, total = lax.fori_loop(*bounds, key_block, nothing)
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
