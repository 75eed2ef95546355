"""Attention on the device beside its definition: errors, milliseconds, and the rate of its
products.

The truth is `attend_dense` in float32 on the same operands, row by row. Beside the kernel's error
is that of `attend_dense` in the operands' own dtype: what rounding alone costs. A kernel is exact
enough where it is no further off than 1.5 times that, or than what float32 cannot do better. On a
CPU the kernel is interpreted, to find mistakes that need no card.

The last cases have one sample a row, as others' kernels want it: the kernel beside XLA's loop and
beside cuDNN.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import sizes_of
from benchmarks.accelerator.timing import milliseconds
from benchmarks.workload import seconds_of
from layertap.model.attention import Attend, attend_dense, attend_flash
from layertap.model.attention_gpu import attend_triton
from layertap.model.config import published_config

_PACKED = ("0.5b", "7b")
_MORE = ("1.5b", "3b", "32b", "72b")
_FLOOR = {"bfloat16": 1e-3, "float32": 2e-6}

Inputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def cases(config: PartConfig) -> Cases:
    """Packed rows of the two shapes that are measured further on, then the loop, the other shapes,
    and whole rows.
    """
    kernel = partial(attend_triton, interpret=config.platform == "cpu")
    found: dict[str, Callable[[], Figures]] = {}
    for size in _PACKED:
        for dtype in ("bfloat16", "float32"):
            found[f"packed {size} {dtype}"] = partial(_compare, config, size, dtype, kernel)
    for size in _PACKED:
        found[f"XLA's loop {size} bfloat16"] = partial(_compare, config, size, "bfloat16", attend_flash)
    for size in _MORE if config.platform == "gpu" else ():
        found[f"other shapes {size} bfloat16"] = partial(_compare, config, size, "bfloat16", kernel)
    for size in _PACKED:
        found[f"one sample a row {size} bfloat16"] = partial(_whole_rows, config, size, kernel)
        if config.platform == "gpu":
            found[f"one sample a row {size} bfloat16, cuDNN"] = partial(_whole_rows, config, size, attend_cudnn)
    return found


def packed_starts(rows: int, tokens: int) -> np.ndarray:
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


def attend_cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, _starts: jax.Array) -> jax.Array:
    """What JAX offers of cuDNN: one sample a row, causal."""
    rows, tokens, kv_heads, group, size = queries.shape
    flat = queries.reshape(rows, tokens, kv_heads * group, size)
    mixed = jax.nn.dot_product_attention(flat, keys, values, scale=1.0, is_causal=True, implementation="cudnn")
    return mixed.reshape(queries.shape)


def _inputs(config: PartConfig, size: str, dtype: str, starts: Callable[[int, int], np.ndarray]) -> Inputs:
    shape, sizes = published_config(size), sizes_of(config)
    rows, tokens = (sizes.rows, sizes.row_length) if config.platform == "gpu" else (2, 256)
    rows = 1 if shape.num_attention_heads > 28 else rows
    kv_heads = shape.num_key_value_heads if config.platform == "gpu" else 1
    group = shape.num_attention_heads // shape.num_key_value_heads if config.platform == "gpu" else 2
    seeds = jax.random.split(jax.random.key(len(size)), 3)
    queries = jax.random.normal(seeds[0], (rows, tokens, kv_heads, group, shape.head_dim)) * shape.head_dim**-0.5
    keys, values = (jax.random.normal(seed, (rows, tokens, kv_heads, shape.head_dim)) for seed in seeds[1:])
    return queries.astype(dtype), keys.astype(dtype), values.astype(dtype), jnp.asarray(starts(rows, tokens))


def _compare(config: PartConfig, size: str, dtype: str, attend: Attend) -> Figures:
    return _measured(_inputs(config, size, dtype, packed_starts), dtype, attend)


def _whole_rows(config: PartConfig, size: str, attend: Callable[..., jax.Array]) -> Figures:
    inputs = _inputs(config, size, "bfloat16", lambda rows, tokens: np.zeros((rows, tokens), np.int32))
    return _measured(inputs, "bfloat16", attend)


def _measured(inputs: Inputs, dtype: str, attend: Callable[..., jax.Array]) -> Figures:
    compiled: list[Any] = []
    compiling = seconds_of(lambda: compiled.append(jax.jit(attend).lower(*inputs).compile()))
    mixed = compiled[0](*inputs)
    truth = _row_by_row(tuple(array.astype(jnp.float32) for array in inputs[:3]), inputs[3])
    rounded = _row_by_row(inputs[:3], inputs[3])
    error, unavoidable = _error(mixed, truth), _error(rounded, truth)
    taken = milliseconds(lambda: compiled[0](*inputs))
    return {
        "error": error,
        "dense, same dtype": unavoidable,
        "largest": float(jnp.max(jnp.abs(mixed.astype(jnp.float32) - truth))),
        "exact": error <= max(1.5 * unavoidable, _FLOOR[dtype]),
        "ms": taken,
        "TFLOP/s": _flop(inputs) / taken / 1e9,
        "compiled in s": compiling,
    }


def _row_by_row(operands: tuple[jax.Array, ...], starts: jax.Array) -> jax.Array:
    """The definition, a row at a time: all heads of four rows would be 40 GB of scores at 72B."""
    dense = jax.jit(attend_dense)
    rows = [dense(*(array[row : row + 1] for array in operands), starts[row : row + 1]) for row in range(len(starts))]
    return jnp.concatenate(rows).astype(jnp.float32)


def _error(found: jax.Array, truth: jax.Array) -> float:
    """Norm of the difference over the norm of the truth; NaN stays NaN, never exact enough."""
    return float(jnp.linalg.norm((found.astype(jnp.float32) - truth).ravel()) / jnp.linalg.norm(truth.ravel()))


def _flop(inputs: Inputs) -> float:
    """Of the pairs that see each other: two products of 2 operations for each unit of a head."""
    starts = np.asarray(inputs[3])
    pairs = float(np.sum(np.arange(starts.shape[1])[None, :] - starts + 1))
    _, _, kv_heads, group, size = inputs[0].shape
    return 4.0 * size * kv_heads * group * pairs
