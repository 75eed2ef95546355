"""The compiled step: packed rows in, activations out.

One program for each shape of step. `dispatch` returns at once, with copies to the host already asked for; `harvest`
gives numpy arrays when they are there. Activations are rounded on the device to the narrower of compute and storage
dtype, so that a bfloat16 run moves two bytes a value.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int32

from layertap.errors import DeviceError
from layertap.model.qwen2 import ForwardPlan, Qwen2
from layertap.tap import Site, Tap

Outputs = tuple[Float[Array, "rows length hidden"], ...]
HostOutputs = Mapping[Tap, Float[np.ndarray, "rows length hidden"]]


@partial(jax.jit, static_argnames=("taps", "plan"))
def run_step(
    model: Qwen2,
    token_ids: Int[Array, "rows length"],
    seg_start: Int[Array, "rows length"],
    *,
    taps: tuple[Tap, ...],
    plan: ForwardPlan,
) -> Outputs:
    """The activations at `taps`, [rows, length, hidden] each in `plan.capture_dtype`."""
    return model(token_ids, seg_start, taps=taps, plan=plan)


@dataclass(frozen=True)
class StepProgram:
    """A model with the taps to read and the way to run it."""

    model: Qwen2
    taps: tuple[Tap, ...]
    plan: ForwardPlan

    def dispatch(
        self, token_ids: Int32[np.ndarray, "rows length"], seg_start: Int32[np.ndarray, "rows length"]
    ) -> Outputs:
        """Start one step; compiles where the shape is new. Raises DeviceError where that fails."""
        inputs = jnp.asarray(token_ids), jnp.asarray(seg_start)
        with _device_errors(token_ids.shape):
            outputs = run_step(self.model, *inputs, taps=self.taps, plan=self.plan)
        for output in outputs:
            output.copy_to_host_async()
        return outputs

    def is_ready(self, outputs: Outputs) -> bool:
        """Whether the step has ended."""
        return all(output.is_ready() for output in outputs)  # type: ignore[attr-defined]  # missing in jax.Array

    def harvest(self, outputs: Outputs) -> HostOutputs:
        """The step's activations as numpy arrays (bfloat16 as `ml_dtypes.bfloat16`), without a copy on CPU.

        Raises DeviceError where the step failed.
        """
        with _device_errors(outputs[0].shape):
            return {tap: np.asarray(output) for tap, output in zip(self.taps, outputs, strict=True)}


@contextmanager
def _device_errors(shape: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise DeviceError(
            f"the device failed on a step of {shape[0]} x {shape[1]} tokens: {error}."
            " Where memory ran out, lower --batch_size or --row_length"
        ) from error


def forward_plan(capture_dtype: np.dtype) -> ForwardPlan:
    """The way to run the model on the devices that are there."""
    return ForwardPlan(capture_dtype, token_block=512 if jax.default_backend() == "cpu" else None)


def transfer_dtype(compute: DTypeLike, storage: DTypeLike) -> np.dtype:
    """bfloat16 where either the products or the files are bfloat16: more would be moved for nothing; else float32."""
    return np.dtype(jnp.bfloat16 if jnp.bfloat16 in (np.dtype(compute), np.dtype(storage)) else jnp.float32)


def resolve_taps(layers: Sequence[int], sites: Sequence[Site], num_layers: int) -> tuple[Tap, ...]:
    """Every (layer, site) asked for, sorted by layer; no layers stand for all."""
    return tuple(Tap(layer, site) for layer in layers or range(num_layers) for site in sites)
