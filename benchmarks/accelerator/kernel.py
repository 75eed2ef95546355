"""Attention on the device beside its definition: errors, milliseconds, and the rate of its
products.

The truth is `attend_dense` in float32 on the same operands, row by row. Beside the kernel's error
is that of `attend_dense` in the operands' own dtype: what rounding alone costs. A kernel is exact
enough where it is no further off than 1.5 times that, or than what float32 cannot do better. On a
CPU the kernel is interpreted, to find mistakes that need no card.

The cases that decide how later parts run come first: packed rows, and rows behind a prefix. The
last have one sample a row, as others' kernels want it: the kernel beside XLA's loop and beside
cuDNN. Where tokamax is installed, its kernel is given the same rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator import tokamax_kernel
from benchmarks.accelerator.attention_inputs import Inputs, make_inputs, whole
from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.timing import milliseconds
from benchmarks.workload import seconds_of
from layertap.model.attention import attend_dense, attend_flash
from layertap.model.attention_gpu import attend_triton

_MEASURED = ("0.5b", "7b")
_MORE = ("1.5b", "3b", "32b", "72b")
_FLOOR = {"bfloat16": 1e-3, "float32": 2e-6}

Attend = Callable[..., jax.Array]


def cases(config: PartConfig) -> Cases:
    """Packed rows of the two shapes that are measured further on, then what all prompts begin with,
    windows, the loop, the other shapes, and whole rows.
    """
    gpu = config.platform == "gpu"
    kernel = partial(attend_triton, interpret=not gpu)
    found: dict[str, Callable[[], Figures]] = {}

    def add(name: str, size: str, dtype: str, attend: Attend, **more: Any) -> None:  # noqa: ANN401
        inputs = partial(make_inputs, config, size, dtype, **more)
        found[f"{name} {size} {dtype}"] = partial(_case, inputs, dtype, attend)

    for size in _MEASURED:
        for dtype in ("bfloat16", "float32"):
            add("packed", size, dtype, kernel)
    for size, dtype in (("0.5b", "bfloat16"), ("7b", "bfloat16"), ("0.5b", "float32"))[: 3 if gpu else 1]:
        add("behind a prefix", size, dtype, kernel, prefix=True)
    for size in _MEASURED:
        add("XLA's loop", size, "bfloat16", attend_flash)
    for size in _MEASURED if gpu else _MEASURED[1:]:
        add("in a window", size, "bfloat16", kernel, window=True)
    add("in a window, behind a prefix", "0.5b", "bfloat16", kernel, window=True, prefix=True)
    for size in _MORE if gpu else ():
        add("other shapes", size, "bfloat16", kernel)
    for size in _MEASURED:
        add("one sample a row", size, "bfloat16", kernel, starts=whole)
        if gpu:
            add("cuDNN, one sample a row", size, "bfloat16", attend_cudnn, starts=whole)
    if tokamax_kernel.is_installed():
        tokamax = partial(tokamax_kernel.attend_tokamax, platform=config.platform)
        for size in _MEASURED:
            add("tokamax, packed", size, "bfloat16", tokamax)
            add("tokamax, behind a prefix", size, "bfloat16", tokamax, prefix=True)
        add("tokamax, in a window", "7b", "bfloat16", tokamax, window=True)
    return found


def attend_cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, _starts: jax.Array) -> jax.Array:
    """What JAX offers of cuDNN: one sample a row, causal."""
    rows, tokens, kv_heads, group, size = queries.shape
    flat = queries.reshape(rows, tokens, kv_heads * group, size)
    mixed = jax.nn.dot_product_attention(flat, keys, values, scale=1.0, is_causal=True, implementation="cudnn")
    return mixed.reshape(queries.shape)


def _case(make: Callable[[], Inputs], dtype: str, attend: Attend) -> Figures:
    return measured(make(), dtype, attend)


def measured(inputs: Inputs, dtype: str, attend: Attend) -> Figures:
    """How far off it is, and how fast."""
    function, arguments = inputs.call(attend)
    compiled: list[Any] = []
    compiling = seconds_of(lambda: compiled.append(jax.jit(function).lower(*arguments).compile()))
    mixed = compiled[0](*arguments)
    truth = _by_definition(inputs, "float32")
    error, unavoidable = _error(mixed, truth), _error(_by_definition(inputs), truth)
    taken = milliseconds(lambda: compiled[0](*arguments))
    return {
        "error": error,
        "dense, same dtype": unavoidable,
        "largest": float(jnp.max(jnp.abs(mixed.astype(jnp.float32) - truth))),
        "exact": error <= max(1.5 * unavoidable, _FLOOR[dtype]),
        "ms": taken,
        "TFLOP/s": inputs.flop / taken / 1e9,
        "compiled in s": compiling,
    }


def _by_definition(inputs: Inputs, dtype: str | None = None) -> jax.Array:
    """The definition, a row at a time: all heads of four rows would be 40 GB of scores at 72B."""
    rows = [inputs.row(number, dtype).call(attend_dense) for number in range(len(inputs.starts))]
    dense = jax.jit(rows[0][0])
    return jnp.concatenate([dense(*arguments) for _, arguments in rows]).astype(jnp.float32)


def _error(found: jax.Array, truth: jax.Array) -> float:
    """Norm of the difference over the norm of the truth; NaN stays NaN, never exact enough."""
    return float(jnp.linalg.norm((found.astype(jnp.float32) - truth).ravel()) / jnp.linalg.norm(truth.ravel()))
