"""Causal attention over packed rows on TPU: JAX's own splash kernel, with segment ids.

`seg_start` is the segment id: two tokens of a row belong to one sample exactly if it is equal, and
a padding token has its own. So splash's causal mask, and-ed with equality of segments, is the
definition in `attention.py`.

The kernel skips blocks above the diagonal, but not blocks of other samples, so a packed row costs
attention over its whole length. Keep rows short on TPU (2,048 to 4,096 tokens: 2 to 11 % of all
operations). Blocks of 1,024 were a third faster than 512 on v6e (axlearn#958); scores are computed
512 keys at a time to stay within VMEM.

A prefix is not part of the rows: segment ids are equal or not, so one key cannot belong to several
samples. XLA multiplies all queries with the few keys of the prefix, in blocks of queries. The
result is merged with the kernel's by the sums of the weights; the kernel returns their logarithms.

Shapes as in `attention.py`. The query heads of a group share one key-value head (splash's
multi-query form); rows and key-value heads are mapped over. Matrix products take bfloat16 operands;
float32 operands get full precision, through the context in which the kernel is traced, since it has
no argument for it.
"""

from contextlib import nullcontext
from functools import cache, partial
from math import gcd
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from layertap.model.attention import Keys, Queries, SegStart, Shared, capped, firsts_of

_LARGEST_BLOCK = 1024
_LARGEST_COMPUTE_BLOCK = 512
_SMALLEST_BLOCK = 128  # of the kernel
_MERGED_QUERIES = 512  # at a time with the prefix: their scores take a few dozen MB


def attend_splash(
    queries: Queries,
    keys: Keys,
    values: Keys,
    seg_start: SegStart,
    *,
    window: int | None = None,
    cap: float | None = None,
    shared: Shared | None = None,
    interpret: bool = False,
) -> Float[Array, "B T K G D"]:
    """Compute attention. T must be a multiple of 128. `interpret` needs no TPU."""
    tokens, group = queries.shape[1], queries.shape[3]
    kernel = _kernel(tokens, group, window, cap, shared is not None, interpret)

    def one_head(query: Array, key: Array, value: Array, start: Array) -> Any:  # noqa: ANN401 - as the kernel gives it
        return kernel(query, key, value, segment_ids=splash.SegmentIds(start, start))

    over_heads = jax.vmap(one_head, in_axes=(0, 0, 0, None))
    with jax.default_matmul_precision("highest") if queries.dtype == jnp.float32 else nullcontext():
        found = jax.vmap(over_heads)(
            queries.transpose(0, 2, 3, 1, 4), keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3), seg_start
        )  # [B, K, G, T, D]
    if shared is None:
        return cast(Array, found).transpose(0, 3, 1, 2, 4).astype(values.dtype)
    own, (own_sum,) = found
    with_prefix = partial(_merge_prefix, shared=shared, cap=cap)
    block = gcd(tokens, _MERGED_QUERIES)

    def in_blocks(array: Array, *, axis: int) -> Array:
        cut = (*array.shape[:axis], tokens // block, block, *array.shape[axis + 1 :])
        return jnp.moveaxis(array.reshape(cut), axis, 0)

    merged = lax.map(
        lambda parts: with_prefix(*parts),
        (
            in_blocks(queries, axis=1),
            in_blocks(own.transpose(0, 3, 1, 2, 4), axis=1),
            in_blocks(own_sum.transpose(0, 3, 1, 2), axis=1),
            in_blocks(firsts_of(seg_start, shared, window), axis=1),
        ),
    )  # [T / block, B, block, K, G, D]
    return jnp.moveaxis(merged, 0, 1).reshape(queries.shape).astype(values.dtype)


def _merge_prefix(
    queries: Queries,
    own: Float[Array, "B T K G D"],
    own_sum: Float[Array, "B T K G"],
    firsts: Int[Array, "B T"],
    *,
    shared: Shared,
    cap: float | None,
) -> Float[Array, "B T K G D"]:
    """Merge the results of queries for the prefix and for their own row. `own_sum` is the logarithm
    of the row's sum of weights.
    """
    keys, values = shared
    precision = lax.Precision.HIGHEST if queries.dtype == jnp.float32 else lax.Precision.DEFAULT
    product = partial(jnp.einsum, preferred_element_type=jnp.float32, precision=precision)
    scores = capped(product("btkgd,pkd->btkgp", queries, keys), cap)
    visible = (jnp.arange(keys.shape[0])[None, None, :] >= firsts[:, :, None])[:, :, None, None, :]
    scores = jnp.where(visible, scores, -jnp.inf)
    highest = jnp.maximum(jnp.max(scores, axis=-1), own_sum)
    weights = jnp.exp(scores - highest[..., None])
    of_own = jnp.exp(own_sum - highest)
    summed = product("btkgp,pkd->btkgd", weights.astype(values.dtype), values) + of_own[..., None] * own.astype(
        jnp.float32
    )
    return summed / (jnp.sum(weights, axis=-1) + of_own)[..., None]


@cache
def _kernel(
    tokens: int, group: int, window: int | None, cap: float | None, sums: bool, interpret: bool
) -> splash.SplashAttentionKernel:
    square = (tokens, tokens)
    one = masks.CausalMask(square) if window is None else masks.LocalMask(square, (window - 1, 0), 0)
    mask = masks.MultiHeadMask([one for _ in range(group)])
    block = _block(tokens, _LARGEST_BLOCK)
    sizes = splash.BlockSizes(block_q=block, block_kv=block, block_kv_compute=_block(block, _LARGEST_COMPUTE_BLOCK))
    # Build this outside of any trace: the kernel keeps arrays that say which blocks to visit.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mqa(
            mask,
            block_sizes=sizes,
            save_residuals=sums,
            attn_logits_soft_cap=cap,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )


def _block(tokens: int, largest: int) -> int:
    """The largest power of two, up to `largest`, that divides `tokens`."""
    block = largest
    while tokens % block:
        block //= 2
    if block < _SMALLEST_BLOCK:
        raise ValueError(f"rows of {tokens} tokens are not a multiple of {_SMALLEST_BLOCK}")
    return block
