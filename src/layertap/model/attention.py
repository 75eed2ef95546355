"""Causal attention over packed rows.

One int32 array says who sees whom: token `q` of a row attends to `k` exactly where `seg_start[q] <= k <= q`. Padding
tokens carry their own index, attend to themselves alone, and so never make a NaN.

Shapes (one legend for the package `model`):

    B rows a step   T tokens a row   H hidden size   D head size   K key-value heads   G query heads per key-value head

`attend_dense` is the definition, quadratic in memory, for tests. `attend_flash` computes the same with an online
softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over key blocks, and begins each query block at the first key
block that one of its samples needs: a packed row pays nothing for its neighbours, and memory stays linear in T. Its
loop bounds are data, so it works on any backend without one program per packing. The query heads of a group are
folded into the rows of one product, so keys and values are never repeated.

Queries arrive already scaled by D ** -0.5. Products take the operands' dtype and sum in float32; softmax is
float32; the result has the operands' dtype again, which is what the output projection takes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Queries = Float[Array, "B T K G D"]
Keys = Float[Array, "B T K D"]
SegStart = Int[Array, "B T"]
Attend = Callable[[Queries, Keys, Keys, SegStart], Float[Array, "B T K G D"]]

# Measured on two CPU cores with 14/2 heads of 64: see docs/LOG.md.
QUERY_BLOCK = 256
KEY_BLOCK = 256

# Columns of ones beside the values, so that the product which sums values also sums weights: 10 % faster than a
# reduction of its own, and the sum is then of the same rounded weights. 16 keep the columns aligned.
_ONES = 16

_MASKED = -1e30


def attend_dense(queries: Queries, keys: Keys, values: Keys, seg_start: SegStart) -> Float[Array, "B T K G D"]:
    """Attention by its definition. Memory grows with B * heads * T * T."""
    scores = jnp.einsum("bqkgd,bskd->bkgqs", queries, keys, preferred_element_type=jnp.float32, precision=_of(queries))
    index = jnp.arange(queries.shape[1])
    visible = (index[None, None, :] >= seg_start[:, :, None]) & (index[None, None, :] <= index[None, :, None])
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1).astype(values.dtype)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights, values, preferred_element_type=jnp.float32, precision=_of(values))
    return mixed.astype(values.dtype)


def attend_flash(queries: Queries, keys: Keys, values: Keys, seg_start: SegStart) -> Float[Array, "B T K G D"]:
    """The same as `attend_dense`, block by block.

    T must be a multiple of `QUERY_BLOCK` and `KEY_BLOCK`, or no larger than they are.
    """
    return lax.map(lambda row: _attend_row(*row), (queries, keys, values, seg_start))


def _attend_row(
    queries: Float[Array, "T K G D"],
    keys: Float[Array, "T K D"],
    values: Float[Array, "T K D"],
    seg_start: Int[Array, " T"],
) -> Float[Array, "T K G D"]:
    tokens, kv_heads, group, size = queries.shape
    q_block, k_block = min(QUERY_BLOCK, tokens), min(KEY_BLOCK, tokens)
    by_head_q = queries.transpose(1, 2, 0, 3)  # [K, G, T, D]
    ones = jnp.ones((tokens, kv_heads, _ONES), values.dtype)
    by_head_k = keys.transpose(1, 0, 2)  # [K, T, D]
    by_head_v = jnp.concatenate([values, ones], axis=-1).transpose(1, 0, 2)  # [K, T, D + ones]

    def query_block(i: Int[Array, ""]) -> Float[Array, "K G q D"]:
        first = i * q_block
        starts = lax.dynamic_slice_in_dim(seg_start, first, q_block)
        rows = first + jnp.arange(q_block)
        block = lax.dynamic_slice_in_dim(by_head_q, first, q_block, axis=2).reshape(kv_heads, group * q_block, size)

        def key_block(j: Int[Array, ""], carry: _Softmax) -> _Softmax:
            k = lax.dynamic_slice_in_dim(by_head_k, j * k_block, k_block, axis=1)
            v = lax.dynamic_slice_in_dim(by_head_v, j * k_block, k_block, axis=1)
            columns = j * k_block + jnp.arange(k_block)
            visible = (columns[None, :] >= starts[:, None]) & (columns[None, :] <= rows[:, None])
            return _accumulate(carry, block, k, v, jnp.tile(visible, (group, 1)))

        nothing = (
            jnp.full((kv_heads, group * q_block, 1), _MASKED, jnp.float32),
            jnp.zeros((kv_heads, group * q_block, size + _ONES), jnp.float32),
        )
        # `seg_start` never falls inside a row, so the block's first query needs the earliest keys of all of them.
        _, summed = lax.fori_loop(starts[0] // k_block, (first + q_block - 1) // k_block + 1, key_block, nothing)
        mixed = summed[..., :size] / summed[..., size:][..., :1]
        return mixed.astype(values.dtype).reshape(kv_heads, group, q_block, size)

    blocks = lax.map(query_block, jnp.arange(tokens // q_block))  # [T/q, K, G, q, D]
    return blocks.transpose(0, 3, 1, 2, 4).reshape(tokens, kv_heads, group, size)


# Running maximum of the scores [K, G*q, 1]; running weighted sum of values, and of ones [K, G*q, D + ones].
_Softmax = tuple[Float[Array, "K Gq 1"], Float[Array, "K Gq D1"]]


def _accumulate(
    carry: _Softmax,
    queries: Float[Array, "K Gq D"],
    keys: Float[Array, "K k D"],
    values: Float[Array, "K k D1"],
    visible: Bool[Array, "Gq k"],
) -> _Softmax:
    """Fold one key block into the running softmax."""
    maximum, summed = carry
    scores = jnp.where(visible[None], _heads_product(queries, keys, contract=2), _MASKED)
    new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - new_maximum).astype(values.dtype)
    shrink = jnp.exp(maximum - new_maximum)
    return new_maximum, summed * shrink + _heads_product(weights, values, contract=1)


def _heads_product(left: Float[Array, "K m n"], right: Array, *, contract: int) -> Float[Array, "K m p"]:
    dimensions = (((2,), (contract,)), ((0,), (0,)))
    return lax.dot_general(left, right, dimensions, precision=_of(left), preferred_element_type=jnp.float32)


def _of(operand: Array) -> lax.Precision:
    """Full precision for float32 operands: accelerators would otherwise round them to bfloat16 or tf32."""
    return lax.Precision.HIGHEST if operand.dtype == jnp.float32 else lax.Precision.DEFAULT
