"""Attention on the device beside its definition: errors, milliseconds, and the rate of its
products.

The truth is `attend_dense` in float32 on the same operands, row by row. Beside the kernel's error
is that of `attend_dense` in the operands' own dtype: what rounding alone costs. A kernel is exact
enough where it is no further off than 1.5 times that, or than what float32 cannot do better. On a
CPU the kernel is interpreted, to find mistakes that need no card.

The cases that decide how later parts run come first: packed rows, and rows behind a prefix. Where
tokamax is installed, its kernel is given the same rows, and ours with other sizes of blocks. Then
one sample a row, as cuDNN wants it, and the shapes that no later part runs. Compiling the
definition takes most of a case's time on a card, so cases with the same operands share its results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import tokamax_kernel
from benchmarks.accelerator.attention_inputs import Inputs, make_inputs, packed, whole
from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.timing import milliseconds
from benchmarks.workload import seconds_of
from layertap.model.attention import attend_dense, attend_flash
from layertap.model.attention_gpu import Blocks, attend_triton

_MEASURED = ("0.5b", "7b")
_MORE = ("1.5b", "3b", "32b", "72b")
_TRIED = (Blocks(128, 64, 8, 3), Blocks(128, 64, 4, 3), Blocks(128, 128, 8, 2), Blocks(64, 64, 4, 3))
"""Sizes that may suit a card better than the usual ones: queries, keys, warps, stages."""
_FLOOR = {"bfloat16": 1e-3, "float32": 2e-6}

Attend = Callable[..., jax.Array]


@dataclass(frozen=True)
class Operands:
    """Which operands a case has; see `make_inputs`."""

    size: str
    dtype: str
    starts: Callable[[int, int], np.ndarray] = packed
    window: bool = False
    prefix: bool = False


def cases(config: PartConfig) -> Cases:
    """Packed rows of the two shapes that are measured further on, then what all prompts begin with,
    other kernels and sizes of blocks, windows, whole rows, and the other shapes.
    """
    gpu = config.platform == "gpu"
    kernel = partial(attend_triton, interpret=not gpu)
    found: dict[str, Callable[[], Figures]] = {}

    def add(name: str, attend: Attend, size: str, dtype: str = "bfloat16", **more: Any) -> None:  # noqa: ANN401
        found[f"{name} {size} {dtype}"] = partial(_case, config, Operands(size, dtype, **more), attend)

    for size in _MEASURED:
        for dtype in ("bfloat16", "float32"):
            add("packed", kernel, size, dtype)
    for size, dtype in (("0.5b", "bfloat16"), ("7b", "bfloat16"), ("0.5b", "float32"))[: 3 if gpu else 1]:
        add("behind a prefix", kernel, size, dtype, prefix=True)
    if tokamax_kernel.is_installed():
        tokamax = partial(tokamax_kernel.attend_tokamax, platform=config.platform)
        for size in _MEASURED:
            add("tokamax, packed", tokamax, size)
            add("tokamax, behind a prefix", tokamax, size, prefix=True)
        add("tokamax, in a window", tokamax, "7b", window=True)
    for size in _MEASURED:
        for blocks in _TRIED if gpu else _TRIED[:1]:
            add(f"blocks {tuple(blocks)}, packed", partial(kernel, blocks=blocks), size)
    for size in _MEASURED:
        add("XLA's loop", attend_flash, size)
    for size in _MEASURED if gpu else _MEASURED[1:]:
        add("in a window", kernel, size, window=True)
    add("in a window, behind a prefix", kernel, "0.5b", window=True, prefix=True)
    for size in _MEASURED:
        add("one sample a row", kernel, size, starts=whole)
        if gpu:
            add("cuDNN, one sample a row", attend_cudnn, size, starts=whole)
    for size in _MORE if gpu else ():
        add("other shapes", kernel, size)
    return found


def attend_cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, _starts: jax.Array) -> jax.Array:
    """What JAX offers of cuDNN: one sample a row, causal."""
    rows, tokens, kv_heads, group, size = queries.shape
    flat = queries.reshape(rows, tokens, kv_heads * group, size)
    mixed = jax.nn.dot_product_attention(flat, keys, values, scale=1.0, is_causal=True, implementation="cudnn")
    return mixed.reshape(queries.shape)


def _case(config: PartConfig, operands: Operands, attend: Attend) -> Figures:
    """How far off it is, and how fast."""
    inputs, truth, unavoidable = _defined(config, operands)
    function, arguments = inputs.call(attend)
    compiled: list[Any] = []
    compiling = seconds_of(lambda: compiled.append(jax.jit(function).lower(*arguments).compile()))
    mixed = compiled[0](*arguments)
    error = _error(mixed, truth)
    taken = milliseconds(lambda: compiled[0](*arguments))
    return {
        "error": error,
        "dense, same dtype": unavoidable,
        "largest": float(jnp.max(jnp.abs(mixed.astype(jnp.float32) - truth))),
        "exact": error <= max(1.5 * unavoidable, _FLOOR[operands.dtype]),
        "ms": taken,
        "TFLOP/s": inputs.flop / taken / 1e9,
        "compiled in s": compiling,
    }


@lru_cache(maxsize=8)
def _defined(config: PartConfig, asked: Operands) -> tuple[Inputs, jax.Array, float]:
    """The operands, the truth, and the error of the definition in their own dtype."""
    more: dict[str, Any] = {"window": asked.window, "prefix": asked.prefix}
    inputs = make_inputs(config, asked.size, asked.dtype, asked.starts, **more)
    truth = _by_definition(inputs, "float32")
    return inputs, truth, _error(_by_definition(inputs), truth)


def _by_definition(inputs: Inputs, dtype: str | None = None) -> jax.Array:
    """The definition, a row at a time: all heads of four rows would be 40 GB of scores at 72B."""
    rows = [inputs.row(number, dtype).call(attend_dense) for number in range(len(inputs.starts))]
    dense = jax.jit(rows[0][0])
    return jnp.concatenate([dense(*arguments) for _, arguments in rows]).astype(jnp.float32)


def _error(found: jax.Array, truth: jax.Array) -> float:
    """Norm of the difference over the norm of the truth; NaN stays NaN, never exact enough."""
    return float(jnp.linalg.norm((found.astype(jnp.float32) - truth).ravel()) / jnp.linalg.norm(truth.ravel()))
