"""Causal attention over packed rows on GPU: one Pallas kernel for Triton (Ampere and later).

Each program takes one query block of one head, and loops over key blocks with an online softmax,
from the first key block that its first query needs up to the diagonal. As on CPU (`attention.py`),
samples in one row add no cost to each other. With a prefix, the loop starts there. Key-value heads
are found by index, so they are never repeated for the query heads of a group.

Rejected: JAX's own Triton kernel (it has segment ids, but visits every block below the diagonal,
and repeats key-value heads), and cuDNN's packed layout (Hopper only, through a private function of
JAX, bfloat16 only). Shapes as in `attention.py`. Scores and sums are float32; float32 operands are
multiplied at full precision, not as TF32.

JAX deprecates its Triton backend since 0.11, and still has it in 0.12. `pl.dot` went first, so we
use `lax` here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from layertap.model.attention import Keys, Queries, SegStart, Shared, capped, firsts_of, within

_ROW_MULTIPLE = 128
_MASKED = -1e30


class Blocks(NamedTuple):
    """Queries of a program, keys of one loop iteration, warps that share both, and how many
    iterations' keys are on their way at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int = 2


def blocks_for(dtype: DTypeLike, size: int) -> Blocks:
    """The sizes that fit a multiprocessor's registers and shared memory (99 KiB on small cards).

    Without TF32 no matrix unit takes float32: each thread keeps its share of all operands in
    registers. With blocks as large as for bfloat16, the compiler reports 27 KB of spills a thread
    and 160 KB of shared memory (docs/LOG.md).
    """
    if jnp.dtype(dtype) == jnp.float32:
        return Blocks(64, 32, 8)
    return Blocks(128, 64, 4 if size <= 64 else 8)


def attend_triton(
    queries: Queries,
    keys: Keys,
    values: Keys,
    seg_start: SegStart,
    *,
    window: int | None = None,
    cap: float | None = None,
    shared: Shared | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> Float[Array, "B T K G D"]:
    """Attention. T must be a multiple of 128, D a power of two.

    `blocks` are sizes to try in place of the usual ones; `interpret` needs no GPU.
    """
    rows, tokens, kv_heads, group, size = queries.shape
    if tokens % _ROW_MULTIPLE:
        raise ValueError(f"rows of {tokens} tokens are not a multiple of {_ROW_MULTIPLE}")
    blocks = blocks or blocks_for(queries.dtype, size)
    query_block = pl.BlockSpec((None, blocks.queries, None, size), lambda row, head, block: (row, block, head, 0))
    numbers = pl.BlockSpec((None, blocks.queries), lambda row, _h, block: (row, block))
    all_keys = pl.BlockSpec((None, tokens, None, size), lambda row, head, _block: (row, 0, head // group, 0))
    specs, given = [query_block, all_keys, all_keys, numbers], [keys, values, within(seg_start, window)]
    if shared is not None:
        padding = -shared[0].shape[0] % blocks.keys
        before = [jnp.pad(part, ((padding, 0), (0, 0), (0, 0))) for part in shared]
        all_before = pl.BlockSpec((before[0].shape[0], None, size), lambda _row, head, _block: (0, head // group, 0))
        specs += [all_before, all_before, numbers]
        given += [*before, firsts_of(seg_start, shared, window) + padding]
    kernel = pl.pallas_call(
        partial(_attend_block, blocks, cap),
        grid=(rows, kv_heads * group, tokens // blocks.queries),
        in_specs=specs,
        out_specs=query_block,
        out_shape=jax.ShapeDtypeStruct((rows, tokens, kv_heads * group, size), values.dtype),  # type: ignore[no-untyped-call]
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="attend_packed",
    )
    mixed = kernel(queries.reshape(rows, tokens, kv_heads * group, size), *given)
    return mixed.reshape(queries.shape)


def _attend_block(blocks: Blocks, cap: float | None, query_ref, key_ref, value_ref, start_ref, *refs) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002
    """Attention of query block [q, D] of one head over keys and values [T, D], and over those of
    the prefix [P, D] before them, if `refs` has them.
    """
    *before, mixed_ref = refs
    query, starts = query_ref[...], start_ref[...]
    first = pl.program_id(2) * blocks.queries
    rows = first + jnp.arange(blocks.queries)

    def folded(key_ref: Any, value_ref: Any, see: Callable[[Array], Array]) -> Any:  # noqa: ANN401
        def key_block(j, carry):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            mixed, maximum, total = carry
            span = pl.ds(j * blocks.keys, blocks.keys)
            visible = see(j * blocks.keys + jnp.arange(blocks.keys))
            scores = jnp.where(visible, capped(_product(query, key_ref[span, :], contract=1), cap), _MASKED)
            new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1))
            # A query that sees no key here has seen none yet: its maximum is the mask, exp(0) is 1.
            weights = jnp.where(visible, jnp.exp(scores - new_maximum[:, None]), 0.0)
            shrink = jnp.exp(maximum - new_maximum)
            summed = _product(weights.astype(value_ref.dtype), value_ref[span, :], contract=0)
            return mixed * shrink[:, None] + summed, new_maximum, total * shrink + jnp.sum(weights, axis=1)

        return key_block

    carry = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full((blocks.queries,), _MASKED, jnp.float32),
        jnp.zeros((blocks.queries,), jnp.float32),
    )
    if before:
        shared_keys, shared_values, first_ref = before
        firsts, count = first_ref[...], shared_keys.shape[0] // blocks.keys
        begin = folded(shared_keys, shared_values, partial(_sees, firsts))
        carry = lax.fori_loop(jnp.min(firsts) // blocks.keys, count, begin, carry)
    # `seg_start` never decreases within a row: a block's first query needs the earliest keys.
    bounds = jnp.min(starts) // blocks.keys, (first + blocks.queries) // blocks.keys
    see_own = lambda columns: _sees(starts, columns) & (columns[None, :] <= rows[:, None])  # noqa: E731
    mixed, _, total = lax.fori_loop(*bounds, folded(key_ref, value_ref, see_own), carry)
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)


def _sees(firsts: Array, columns: Array) -> Array:
    return columns[None, :] >= firsts[:, None]


def _product(left: Array, right: Array, *, contract: int) -> Array:
    """Multiply rows of `left` by dimension `contract` of `right`; HIGHEST avoids TF32."""
    dimensions = (((1,), (contract,)), ((), ()))
    return lax.dot_general(left, right, dimensions, lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
