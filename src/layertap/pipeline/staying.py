"""Activations that stay on the device, for a trainer there that never needs them on the host.

A step's outputs stay where they are. The host only gets their norms, 4 bytes a token and tap: they
show sinks, NaN and infinities. `DeviceTokens` says which tokens of a step are meant. You slice and
index it like a numpy array, and nothing moves until somebody gathers the tokens (api/device.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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
    """The Euclidean norm of each token, row after row; float32 [rows x length]. Those of `before`
    follow."""
    before: Mapping[Tap, "DeviceTokens"] | None = None
    """The prefix of its samples, if that was computed before."""

    @classmethod
    def of(
        cls, outputs: Mapping[Tap, Float[Array, "rows length _"]], before: Mapping[Tap, "DeviceTokens"] | None = None
    ) -> "DeviceStep":
        """Wait for a step, and fetch only the norms; raises JAX's exception if it failed."""
        found = dict(zip(outputs, jax.device_get(_norms(tuple(outputs.values()))), strict=True))
        if before is not None:
            found = {tap: np.concatenate([norms, before[tap].norms]) for tap, norms in found.items()}
        return cls(outputs, found, before)

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

    @cached_property
    def values(self) -> Float[Array, "tokens _"]:
        """Their activations, gathered on the device."""
        return jnp.take(self.step.outputs[self.tap].reshape(-1, self.step.outputs[self.tap].shape[-1]), self.places, 0)

    def behind(self, before: "DeviceTokens") -> "DeviceTokens":
        """Tokens of the prefix of the step's samples, followed by these."""
        rows, length, _ = self.step.outputs[self.tap].shape
        places = np.concatenate([before.places + rows * length, self.places]).astype(np.int32)
        return DeviceTokens(self.step, self.tap, places)


def joined(*parts: DeviceTokens) -> DeviceTokens:
    """Tokens of a sample: all of them, or those of its prefix and then the others."""
    *before, own = parts
    return own.behind(*before) if before else own


@jax.jit
def _norms(outputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """The norm of each token, by sums in float32."""
    wide = [output.astype(jnp.float32).reshape(-1, output.shape[-1]) for output in outputs]
    return tuple(jnp.sqrt(jnp.einsum("th,th->t", values, values, precision="highest")) for values in wide)
