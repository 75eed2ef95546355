"""What attention is given: packed rows, whole rows, rows behind a prefix, rows in a window.

The values are random, since neither errors nor speed depend on what they mean. Queries are scaled
as the decoder scales them. On a CPU everything is small, so that a kernel can be interpreted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.sizes import sizes_of
from benchmarks.config import Device
from layertap.model.attention import Shared, firsts_of, within
from layertap.model.config import published_config

PREFIX: dict[Device, int] = {"gpu": 298, "cpu": 40}
"""Tokens of a prefix; on a card those of the default prompt with Qwen's tokenizer."""

WINDOW: dict[Device, int] = {"gpu": 1024, "cpu": 100}
"""Tokens that a token sees at most; on a card those of Gemma 3, which a row is longer than."""


@dataclass(frozen=True)
class Inputs:
    """Operands [B, T, K, G, D] and [B, T, K, D], and what each token sees."""

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    starts: jax.Array
    window: int | None = None
    shared: Shared | None = None

    def call(self, attend: Callable[..., jax.Array]) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
        """A function of arrays alone, and its arguments."""
        more = {} if self.window is None else {"window": self.window}
        if self.shared is None:
            function = partial(attend, **more) if more else attend  # JAX compiles `attend` itself once
            return function, (self.queries, self.keys, self.values, self.starts)

        def behind(queries: jax.Array, keys: jax.Array, values: jax.Array, starts: jax.Array, *shared: Any) -> Any:  # noqa: ANN401
            return attend(queries, keys, values, starts, shared=shared, **more)

        return behind, (self.queries, self.keys, self.values, self.starts, *self.shared)

    def row(self, number: int, dtype: str | None = None) -> "Inputs":
        """One row of these, in another dtype if one is named."""
        own, to = slice(number, number + 1), dtype or self.queries.dtype
        queries, keys, values = (array[own].astype(to) for array in (self.queries, self.keys, self.values))
        shared = None if self.shared is None else (self.shared[0].astype(to), self.shared[1].astype(to))
        return Inputs(queries, keys, values, self.starts[own], self.window, shared)

    @property
    def flop(self) -> float:
        """Of the pairs that see each other: two products of 2 operations a unit of a head."""
        first, index = np.asarray(within(self.starts, self.window)), np.arange(self.starts.shape[1])
        pairs = float(np.sum(index[None, :] - first + 1))
        if self.shared is not None:
            hidden = np.asarray(firsts_of(self.starts, self.shared, self.window))
            pairs += float(np.sum(self.shared[0].shape[0] - hidden))
        _, _, kv_heads, group, size = self.queries.shape
        return 4.0 * size * kv_heads * group * pairs


def packed(rows: int, tokens: int) -> np.ndarray:
    """`seg_start` of uneven samples: three and padding, one and padding, many small ones, and one
    that fills a row.
    """
    cuts = [[0.0, 0.43, 0.5, 0.81], [0.0], list(np.arange(0, 0.99, 0.037)), [0.0]]
    ends = [0.94, 0.985, 1.0, 1.0]
    starts = np.tile(np.arange(tokens, dtype=np.int32), (rows, 1))
    for row in range(rows):
        end = int(ends[row % 4] * tokens)
        bounds = [int(cut * tokens) for cut in cuts[row % 4]] + [end]
        for first, last in pairwise(bounds):
            starts[row, first:last] = first
    return starts


def whole(rows: int, tokens: int) -> np.ndarray:
    """`seg_start` of one sample a row."""
    return np.zeros((rows, tokens), np.int32)


def make_inputs(
    config: PartConfig,
    size: str,
    dtype: str,
    starts: Callable[[int, int], np.ndarray] = packed,
    *,
    window: bool = False,
    prefix: bool = False,
) -> Inputs:
    """Those of a published size; on a CPU with one key-value head and its group of two."""
    shape, sizes, small = published_config(size), sizes_of(config), config.platform == "cpu"
    rows, tokens = (2, 256) if small else (sizes.rows, sizes.row_length)
    rows = 1 if shape.num_attention_heads > 28 else rows
    kv_heads = 1 if small else shape.num_key_value_heads
    group = 2 if small else shape.num_attention_heads // shape.num_key_value_heads
    seeds = jax.random.split(jax.random.key(len(size)), 5)
    queries = jax.random.normal(seeds[0], (rows, tokens, kv_heads, group, shape.head_dim)) * shape.head_dim**-0.5
    keys, values = (jax.random.normal(seed, (rows, tokens, kv_heads, shape.head_dim)) for seed in seeds[1:3])
    before = [jax.random.normal(seed, (PREFIX[config.platform], kv_heads, shape.head_dim)) for seed in seeds[3:]]
    return Inputs(
        queries.astype(dtype),
        keys.astype(dtype),
        values.astype(dtype),
        jnp.asarray(starts(rows, tokens)),
        WINDOW[config.platform] if window else None,
        (before[0].astype(dtype), before[1].astype(dtype)) if prefix else None,
    )
