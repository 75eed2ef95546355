"""Activations that stay on the device: for a trainer there, which never needs them on the host.

A step's outputs are left where they are. What is known of them on the host is their norms, 4 bytes
a token and tap: they tell sinks, NaN and infinities. `DeviceTokens` says which tokens of a step are
meant; it is cut and chosen from as an array of numpy is, and nothing moves until somebody gathers
them (api/device.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from layertap.core.taps import Tap


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """The outputs of one step."""

    outputs: Mapping[Tap, Float[Array, "rows length _"]]
    norms: Mapping[Tap, np.ndarray]
    """The Euclidean norm of each token, row after row; float32 [rows x length]."""

    @classmethod
    def of(cls, outputs: Mapping[Tap, Float[Array, "rows length _"]]) -> "DeviceStep":
        """Wait for a step, and fetch the norms alone; raises what JAX raises where it failed."""
        found = jax.device_get(_norms(tuple(outputs.values())))
        return cls(outputs, dict(zip(outputs, found, strict=True)))

    def rows(self) -> dict[Tap, dict[int, "DeviceTokens"]]:
        """Each row of the step at each tap."""
        rows, length, _ = next(iter(self.outputs.values())).shape
        places = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
        return {tap: {row: DeviceTokens(self, tap, places[row]) for row in range(rows)} for tap in self.outputs}


@dataclass(frozen=True, eq=False)
class DeviceTokens:
    """Some tokens of a step at one tap."""

    step: DeviceStep
    tap: Tap
    places: np.ndarray
    """Which tokens, counted over the step row after row; int32, of any shape."""

    def __getitem__(self, chosen: slice | np.ndarray) -> "DeviceTokens":
        return DeviceTokens(self.step, self.tap, self.places[chosen])

    def __len__(self) -> int:
        return len(self.places)

    def copy(self) -> "DeviceTokens":
        """These tokens: there is no larger array that a view would keep alive."""
        return self

    @property
    def norms(self) -> np.ndarray:
        """Their Euclidean norms; float32."""
        return self.step.norms[self.tap][self.places]


@jax.jit
def _norms(outputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of each token, by sums in float32."""
    wide = [output.astype(jnp.float32).reshape(-1, output.shape[-1]) for output in outputs]
    return tuple(jnp.sqrt(jnp.einsum("th,th->t", values, values, precision="highest")) for values in wide)
