"""Causal attention over packed rows.

One int32 array says which tokens see which: token q of a row attends to token k if seg_start[q] <=
k <= q. The array never decreases within a row. A window is such an array too, whose start moves
with q. Padding tokens have their own index and attend only to themselves, so they never make a NaN.

With a prefix (`shared`), every token also sees the tokens of the prefix. Their keys and values are
the same for all rows and come from outside; the online softmax starts from them. They come before
the sample: the token at position i of its sample is at position i + P of what it sees, and windows
count in this way.

Shapes (one legend for the package `model`):

    B rows a step       T tokens a row          H hidden size
    D head size         K key-value heads       G query heads of a key-value head
    P tokens of the prefix

`attend_dense` is the definition, for tests; its memory is quadratic in T. `attend_flash` computes
the same with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over key blocks. It
starts each query block at the first key block that one of its samples needs: samples in one row add
no cost to each other, and memory is linear in T. Key blocks that every query of a block sees go
first, several at a time and without a mask; in long samples these are nearly all. Loop bounds are
data, so one program serves all packings. The query heads of a group are folded into the rows of one
product, so keys and values are never repeated.

Queries come scaled by D ** -0.5. Products take the operands' dtype and sum in float32; softmax is
float32; the result has the operands' dtype, which the output projection takes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Queries = Float[Array, "B T K G D"]
Keys = Float[Array, "B T K D"]
SegStart = Int[Array, "B T"]
Shared = tuple[Float[Array, "P K D"], Float[Array, "P K D"]]  # keys and values of the prefix


@runtime_checkable
class Attend(Protocol):
    """The interface of every kernel. With a `window`, a token sees at most that many tokens, itself
    included. With a `cap`, scores s become cap * tanh(s / cap). With `shared`, samples follow a
    prefix.
    """

    def __call__(
        self,
        queries: Queries,
        keys: Keys,
        values: Keys,
        seg_start: SegStart,
        *,
        window: int | None = None,
        cap: float | None = None,
        shared: Shared | None = None,
    ) -> Float[Array, "B T K G D"]:
        """The weighted values of each head."""
        ...


# Queries at a time, and keys at a time where some query does not see all of them. This and the
# following were measured on two CPU cores with 14/2 heads of 64 (docs/LOG.md).
BLOCK = 128

# Key blocks at a time where every query sees all of them: no mask, and fewer loop iterations.
_CLEAR = 2

# Tokens of a prefix at a time.
_PIECE = 320

# Columns of ones beside the values: the product that sums values then sums weights too. This is
# 10 % faster than a separate reduction, and sums the same rounded weights. 16 keep the columns
# aligned.
_ONES = 16

_MASKED = -1e30


def attend_dense(
    queries: Queries,
    keys: Keys,
    values: Keys,
    seg_start: SegStart,
    *,
    window: int | None = None,
    cap: float | None = None,
    shared: Shared | None = None,
) -> Float[Array, "B T K G D"]:
    """Attention by its definition. Memory grows with B * heads * T * (T + P)."""
    own, index = within(seg_start, window), jnp.arange(queries.shape[1])
    visible = (index[None, None, :] >= own[:, :, None]) & (index[None, None, :] <= index[None, :, None])
    if shared is not None:
        firsts, place = firsts_of(seg_start, shared, window), jnp.arange(shared[0].shape[0])
        visible = jnp.concatenate([place[None, None, :] >= firsts[:, :, None], visible], axis=-1)
        keys, values = (
            jnp.concatenate([jnp.broadcast_to(before[None], (len(rows), *before.shape)), rows], axis=1)
            for before, rows in zip(shared, (keys, values), strict=True)
        )
    scores = jnp.einsum("bqkgd,bskd->bkgqs", queries, keys, preferred_element_type=jnp.float32, precision=_of(queries))
    scores = capped(scores, cap)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1).astype(values.dtype)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights, values, preferred_element_type=jnp.float32, precision=_of(values))
    return mixed.astype(values.dtype)


def attend_flash(
    queries: Queries,
    keys: Keys,
    values: Keys,
    seg_start: SegStart,
    *,
    window: int | None = None,
    cap: float | None = None,
    shared: Shared | None = None,
) -> Float[Array, "B T K G D"]:
    """Compute the same as `attend_dense`, block by block.

    T must be a multiple of `BLOCK`, or not larger than it.
    """
    own = within(seg_start, window)
    if shared is None:
        return lax.map(lambda row: _attend_row(*row, cap=cap), (queries, keys, values, own))
    prefix = _pieces_of(shared, in_part=window is not None)
    firsts = firsts_of(seg_start, shared, window) + prefix.padding
    return lax.map(lambda row: _attend_row(*row, prefix=prefix, cap=cap), (queries, keys, values, own, firsts))


def within(seg_start: SegStart, window: int | None) -> SegStart:
    """The first token that each token sees, if it sees at most `window` of them."""
    if window is None:
        return seg_start
    first = jnp.arange(seg_start.shape[1], dtype=seg_start.dtype) - (window - 1)
    return jnp.maximum(seg_start, first[None, :])


def firsts_of(seg_start: SegStart, shared: Shared, window: int | None) -> Int[Array, "B T"]:
    """The first prefix token that each token sees; P if the window hides the whole prefix."""
    if window is None:
        return jnp.zeros_like(seg_start)
    tokens = shared[0].shape[0]
    places = tokens + jnp.arange(seg_start.shape[1], dtype=seg_start.dtype)[None, :] - seg_start
    return jnp.clip(places - (window - 1), 0, tokens)


class _Pieces(NamedTuple):
    """A prefix by heads, padded at the front to a whole number of equal pieces."""

    keys: Float[Array, "K P D"]
    values: Float[Array, "K P D1"]
    pieces: int
    padding: int
    in_part: bool
    """Whether some token may see only a part of the prefix."""

    @property
    def masked(self) -> bool:
        """Whether anything must be hidden."""
        return self.in_part or self.padding > 0


def _pieces_of(shared: Shared, *, in_part: bool) -> _Pieces:
    tokens = shared[0].shape[0]
    count = -(-tokens // _PIECE)
    padding = -tokens % count
    keys, values = (jnp.pad(part, ((padding, 0), (0, 0), (0, 0))) for part in shared)
    return _Pieces(keys.transpose(1, 0, 2), _with_ones(values), count, padding, in_part)


def _with_ones(values: Float[Array, "T K D"]) -> Float[Array, "K T D1"]:
    ones = jnp.ones((*values.shape[:2], _ONES), values.dtype)
    return jnp.concatenate([values, ones], axis=-1).transpose(1, 0, 2)


def _attend_row(
    queries: Float[Array, "T K G D"],
    keys: Float[Array, "T K D"],
    values: Float[Array, "T K D"],
    seg_start: Int[Array, " T"],
    firsts: Int[Array, " T"] | None = None,
    *,
    cap: float | None,
    prefix: _Pieces | None = None,
) -> Float[Array, "T K G D"]:
    tokens, kv_heads, group, size = queries.shape
    block = min(BLOCK, tokens)
    by_head_q = queries.transpose(1, 2, 0, 3)  # [K, G, T, D]
    by_head_k = keys.transpose(1, 0, 2)  # [K, T, D]
    by_head_v = _with_ones(values)

    def query_block(i: Int[Array, ""]) -> Float[Array, "K G q D"]:
        starts = lax.dynamic_slice_in_dim(seg_start, i * block, block)
        rows = i * block + jnp.arange(block)
        q = lax.dynamic_slice_in_dim(by_head_q, i * block, block, axis=2).reshape(kv_heads, group * block, size)
        nothing = _no_softmax(kv_heads, group * block, size)

        def fold(softmax: _Softmax, k: Array, v: Array, visible: Bool[Array, "q k"] | None) -> _Softmax:
            scores = capped(_heads_product(q, k, contract=2), cap)
            if visible is not None:
                scores = jnp.where(jnp.tile(visible, (group, 1))[None], scores, _MASKED)
            return _accumulate(softmax, scores, v)

        def fold_own(softmax: _Softmax, first: Int[Array, ""], count: int, *, masked: bool) -> _Softmax:
            k = lax.dynamic_slice_in_dim(by_head_k, first, count, axis=1)
            v = lax.dynamic_slice_in_dim(by_head_v, first, count, axis=1)
            if not masked:
                return fold(softmax, k, v, None)
            columns = first + jnp.arange(count)
            return fold(softmax, k, v, (columns[None, :] >= starts[:, None]) & (columns[None, :] <= rows[:, None]))

        # `seg_start` never decreases within a row: the first query needs the earliest keys, and the
        # keys that the last query sees in the blocks before this one are seen by all.
        needed, clear = starts[0] // block, jnp.minimum(-(-starts[-1] // block), i)
        wide = min(_CLEAR, tokens // block)
        turns = (i - clear) // wide
        before, behind = clear - needed, clear + turns * wide

        def clear_blocks(n: Int[Array, ""], softmax: _Softmax) -> _Softmax:
            return fold_own(softmax, (clear + n * wide) * block, wide * block, masked=False)

        def edge_block(n: Int[Array, ""], softmax: _Softmax) -> _Softmax:
            place = jnp.where(n < before, needed + n, behind + n - before)
            return fold_own(softmax, place * block, block, masked=True)

        begun = nothing
        if prefix is not None and firsts is not None:
            begun = _fold_prefix(nothing, prefix, lax.dynamic_slice_in_dim(firsts, i * block, block), fold)
        softmax = lax.fori_loop(0, turns, clear_blocks, begun)
        _, summed = lax.fori_loop(0, before + i + 1 - behind, edge_block, softmax)
        mixed = summed[..., :size] / summed[..., size:][..., :1]
        return mixed.astype(values.dtype).reshape(kv_heads, group, block, size)

    blocks = lax.map(query_block, jnp.arange(tokens // block))  # [T/q, K, G, q, D]
    return blocks.transpose(0, 3, 1, 2, 4).reshape(tokens, kv_heads, group, size)


def capped(scores: Array, cap: float | None) -> Array:
    """Scores limited to below `cap` by tanh; unchanged if `cap` is None."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


# The running maximum of scores, and the running weighted sum of values and of ones.
_Softmax = tuple[Float[Array, "K Gq 1"], Float[Array, "K Gq D1"]]


def _fold_prefix(nothing: _Softmax, prefix: _Pieces, sees: Int[Array, " q"], fold: Callable[..., _Softmax]) -> _Softmax:
    """Return the softmax over the prefix, of which each query sees what begins at its `sees`."""
    count = prefix.keys.shape[1] // prefix.pieces

    def piece(n: Int[Array, ""], softmax: _Softmax) -> _Softmax:
        k, v = (lax.dynamic_slice_in_dim(part, n * count, count, axis=1) for part in prefix[:2])
        visible = n * count + jnp.arange(count)[None, :] >= sees[:, None] if prefix.masked else None
        return fold(softmax, k, v, visible)

    begin = jnp.min(sees) // count if prefix.masked else 0
    return lax.fori_loop(begin, prefix.pieces, piece, nothing)


def _no_softmax(kv_heads: int, queries: int, size: int) -> _Softmax:
    maximum = jnp.full((kv_heads, queries, 1), _MASKED, jnp.float32)
    return maximum, jnp.zeros((kv_heads, queries, size + _ONES), jnp.float32)


def _accumulate(softmax: _Softmax, scores: Float[Array, "K Gq k"], values: Float[Array, "K k D1"]) -> _Softmax:
    """Add one block of keys, by its scores and values, to the running softmax."""
    maximum, summed = softmax
    new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - new_maximum).astype(values.dtype)
    shrink = jnp.exp(maximum - new_maximum)
    return new_maximum, summed * shrink + _heads_product(weights, values, contract=1)


def _heads_product(left: Float[Array, "K m n"], right: Array, *, contract: int) -> Float[Array, "K m p"]:
    dimensions = (((2,), (contract,)), ((0,), (0,)))
    return lax.dot_general(left, right, dimensions, precision=_of(left), preferred_element_type=jnp.float32)


def _of(operand: Array) -> lax.Precision:
    """Full precision for float32 operands: accelerators would round them to bfloat16 or tf32."""
    return lax.Precision.HIGHEST if operand.dtype == jnp.float32 else lax.Precision.DEFAULT
