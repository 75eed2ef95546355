"""tokamax's attention in our terms, to be compared with our kernel where tokamax is installed.

Its kernels for Hopper and for Triton take the first key that each query sees, which is what
`seg_start` is. So packed rows and windows are one call without a mask in memory. A prefix takes a
second call, and its result is merged with the first one's by the sums of their weights. The public
function of tokamax has neither the first keys nor the sums: both are arguments of the classes
behind it, from modules whose names begin with an underscore. docs/decisions.md has the rest.

On a CPU its reference implementation runs instead, to rehearse the arguments and the merge.
"""

from importlib import import_module, util
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.config import Device
from layertap.model.attention import Shared, firsts_of, within

_ATTENTION = "tokamax._src.ops.attention"
_OPERATIONS: dict[Device, tuple[str, str]] = {
    "gpu": ("pallas_mosaic_gpu", "PallasMosaicGpuFlashAttention"),
    "cpu": ("base", "DotProductAttention"),
}

Part = tuple[jax.Array, jax.Array, jax.Array]


def is_installed() -> bool:
    """Whether tokamax can be compared; it is no dependency."""
    return util.find_spec("tokamax") is not None


def attend_tokamax(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    *,
    platform: Device,
    window: int | None = None,
    shared: Shared | None = None,
) -> jax.Array:
    """Attention as `layertap.model.attention` defines it, without a cap."""
    module, name = _OPERATIONS[platform]
    operation = getattr(import_module(f"{_ATTENTION}.{module}"), name)()
    make_mask = import_module(f"{_ATTENTION}.base").Mask
    rows, tokens, kv_heads, group, size = queries.shape
    flat = queries.reshape(rows, tokens, kv_heads * group, size)
    seen = within(starts, window)[:, None, :]
    more: dict[str, Any] = {"logits_scale": 1.0, "mask": make_mask(k_start=seen, is_causal=True)}
    if shared is None:
        mixed: jax.Array = operation(flat, keys, values, **more)
        return mixed.reshape(queries.shape)
    own, (highest, total) = operation(flat, keys, values, **more, return_residuals=True)
    before = [jnp.broadcast_to(part[None], (rows, *part.shape)) for part in shared]
    more["mask"] = make_mask(k_start=firsts_of(starts, shared, window)[:, None, :])
    begun, (first_highest, first_total) = operation(flat, *before, **more, return_residuals=True)
    return merge((own, highest, total), (begun, first_highest, first_total)).reshape(queries.shape)


def merge(own: Part, before: Part) -> jax.Array:
    """The attention over two sets of keys together, [B, T, heads, D], in the dtype of the first.

    Of each: its result, and for each head and query, [B, heads, T], the largest score and the sum
    of the weights exp(score - largest).
    """
    highest = jnp.maximum(own[1], before[1])
    summed, total = jnp.zeros(own[0].shape, jnp.float32), jnp.zeros(highest.shape, jnp.float32)
    for mixed, most, weight in (own, before):
        share = weight * jnp.exp(most - highest)
        summed += mixed.astype(jnp.float32) * share.mT[..., None]
        total += share
    return (summed / total.mT[..., None]).astype(own[0].dtype)
