"""Pools on the device: rows go there from the outputs of a step, without passing through the host.

One program scatters a sample's rows to their places in the pool, in place. It has few shapes,
because the numbers of rows are rounded up to powers of two and the surplus is dropped. A batch is a
slice of the pool. A program makes it too, because slicing with Python's numbers would compile for
each of them.

All taps of a step must fit in the memory of the device together; otherwise DeviceError says so. It
works only on one device: over a mesh, the tokens of a step are on many devices, and the pool would
have to be moved anyway.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.pipeline.session import OpenedModel
from layertap.pipeline.step import device_errors
from layertap.reader.blocks import Block, BlockLayout
from layertap.reader.config import BatchConfig
from layertap.reader.handover import torch_sees
from layertap.reader.pieces import Rows
from layertap.shards.form import ShardFormat
from layertap.shards.rounding import require_finite

_FEWEST = 256


def stays_on_device(config: BatchConfig, opened: OpenedModel, form: ShardFormat) -> bool:
    """Return whether batches can stay on the device: for JAX, and for a torch that sees the device.

    float16 is rounded on the host, which detects values that are too large.
    """
    if opened.platform == "cpu" or opened.mesh is not None or "float16" in (form.dtype.name, config.dtype):
        return False
    return config.as_ == "jax" or (config.as_ == "torch" and torch_sees(opened.platform))


def measure_norms(sample: Sample, form: ShardFormat, taps: Sequence[Tap]) -> dict[Tap, np.ndarray]:
    """Return the norms of a sample's tokens; raises StorageError for a NaN unless NaNs are kept."""
    found = {}
    for tap in taps:
        tokens: Any = sample.activations[tap]
        found[tap] = tokens.norms
        require_finite(sample, tap, found[tap], form)
    return found


class DeviceBlock(Block):
    """A block whose activations are JAX arrays."""

    @staticmethod
    def make_room(layout: BlockLayout, rows: int) -> "DeviceBlock":
        """Allocate a block to fill."""
        shape = (rows,) if layout.sequence is None else (rows, layout.sequence)
        dtype = jnp.dtype(layout.dtype)
        activations: Any
        with device_errors(f"a pool of {rows} rows", "lower pool_tokens"):
            if len(set(layout.widths)) == 1:
                activations = jnp.zeros((*shape, len(layout.widths), layout.widths[0]), dtype)
            else:
                activations = [jnp.zeros((*shape, width), dtype) for width in layout.widths]
        columns = {name: np.empty(shape, kind) for name, kind in layout.columns.items()}
        return DeviceBlock(activations, columns, np.empty(rows, np.int64))

    def put(self, places: np.ndarray | slice, rows: Rows) -> None:
        """Gather `rows` from their step into these places; the old arrays are freed."""
        tokens: Sequence[Any] = rows.activations
        where, sources = _padded(np.arange(len(self))[places], tokens[0].places, len(self))
        outputs = tuple(one.step.outputs[one.tap] for one in tokens)
        before = tuple(one.step.before[one.tap].values for one in tokens if one.step.before is not None)
        # The only place where a block changes: JAX returns a new array for the old one.
        with device_errors(f"a pool of {len(self)} rows", "lower pool_tokens"):
            object.__setattr__(self, "activations", _scatter(self.activations, outputs, before, where, sources))
        self.put_columns(places, rows)

    def __getitem__(self, rows: slice | np.ndarray) -> "DeviceBlock":
        columns = {name: values[rows] for name, values in self.columns.items()}
        samples = self.samples[rows]
        if isinstance(rows, slice):
            begin, _, _ = rows.indices(len(self))
            taken = _slice(self.activations, begin, length=len(samples))
        else:
            taken = jax.tree.map(lambda array: array[jnp.asarray(rows)], self.activations)
        return DeviceBlock(taken, columns, samples)


def _padded(where: np.ndarray, sources: np.ndarray, beyond: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad both to a power of two of rows; surplus rows get a place beyond the pool."""
    rows = len(where)
    more = max(_FEWEST, 1 << max(rows - 1, 0).bit_length()) - rows
    padding = np.zeros((more, *sources.shape[1:]), sources.dtype)
    return np.append(where, np.full(more, beyond)).astype(np.int32), np.concatenate([sources, padding])


@partial(jax.jit, donate_argnums=0)
def _scatter(pool: Any, outputs: tuple[Array, ...], before: tuple[Array, ...], where: Array, sources: Array) -> Any:  # noqa: ANN401
    """Return the pool with the tokens `sources` of a step in its rows `where`.

    Tokens of the prefix of its samples are counted behind those of the step.
    """
    taken = [output.reshape(-1, output.shape[-1])[sources] for output in outputs]
    if before:
        behind = sources - outputs[0].shape[0] * outputs[0].shape[1]
        choose = (behind >= 0)[..., None]
        taken = [
            jnp.where(choose, first[jnp.maximum(behind, 0)], rows) for first, rows in zip(before, taken, strict=True)
        ]
    if isinstance(pool, list):
        return [one.at[where].set(rows.astype(one.dtype), mode="drop") for one, rows in zip(pool, taken, strict=True)]
    return pool.at[where].set(jnp.stack(taken, axis=-2).astype(pool.dtype), mode="drop")


@partial(jax.jit, static_argnames="length")
def _slice(pool: Any, begin: int, *, length: int) -> Any:  # noqa: ANN401
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, begin, length), pool)
