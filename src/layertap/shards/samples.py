"""What is stored: a sample's activations, and what a reader needs to know of the sample."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from layertap.core.taps import Tap
from layertap.errors import StorageError

Activation = Float[np.ndarray, "tokens hidden"]

THREADS = min(16, os.cpu_count() or 1)
"""How many samples are worked on at once; numpy lets go of the interpreter meanwhile."""


@dataclass(frozen=True, eq=False)
class StoredSample:
    """One sample on its way to disk: real tokens only, never padding."""

    sample_idx: int
    task_id: str
    text_preview: str
    token_ids: Int32[np.ndarray, " tokens"]
    activations: Mapping[Tap, Activation]
    """As the device gave them: bfloat16 in a bfloat16 run."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the prompt was made of its task: plain numbers, strings, tuples and mappings."""

    @property
    def tokens(self) -> int:
        """How many tokens the sample has."""
        return len(self.token_ids)

    def stored(self, tap: Tap, dtype: np.dtype) -> Activation:
        """The activation as it is stored; raises StorageError where a finite value does not fit into float16."""
        activation = self.activations[tap]
        if activation.dtype == dtype:
            return activation
        with np.errstate(over="ignore", invalid="ignore"):  # what is lost is reported below; NaN stays NaN
            converted = np.asarray(activation, dtype)
            too_large = dtype == np.float16 and (np.isinf(converted) & np.isfinite(activation)).any()
        if too_large:
            raise StorageError(
                f"sample {self.sample_idx}, layer {tap.layer}, {tap.site}: a value is too large for float16"
                " (65504); use --storage_dtype float32 or bfloat16"
            )
        return converted

    def rounded(self, dtype: np.dtype) -> "StoredSample":
        """The sample with activations that `dtype` holds exactly; raises StorageError as `stored` does."""
        if all(np.can_cast(activation.dtype, dtype) for activation in self.activations.values()):
            return self
        return replace(self, activations={tap: self.stored(tap, dtype) for tap in self.activations})


def round_all(samples: list[StoredSample], dtype: np.dtype) -> None:
    """Replace each sample by its rounded one.

    So an activation is converted once, although it is measured and then written. In place, so that what the device gave
    is freed sample by sample. Widening loses nothing; it is left to the moment of writing.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        rounded = pool.map(lambda sample: sample.rounded(dtype), samples)
        for number, sample in enumerate(rounded):
            samples[number] = sample
