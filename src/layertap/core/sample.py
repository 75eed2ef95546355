"""A sample: one sequence of tokens that the model runs over, with its columns and origin.
`prompts` makes samples, the pipeline adds their activations, and a format stores them. A sample
holds only real tokens, never padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32

from layertap.core.columns import COLUMNS, Columns
from layertap.core.taps import Tap

Activation = Float[np.ndarray, "tokens width"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample. Raises ValueError if a column is missing or has another length or dtype."""

    sample_idx: int
    """Its index among all samples of the dataset, from 0."""
    task_id: str
    """The task or document that it was made from."""
    text_preview: str
    """The first 200 characters of its text."""
    columns: Columns
    """Every column of `core.columns.COLUMNS` by name, with one value per token."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the prompt was made from its task: plain numbers, strings, tuples and mappings."""
    activations: Mapping[Tap, Activation] = field(default_factory=dict)
    """As they came from the device: bfloat16 in a bfloat16 run. Empty until the model has run."""

    def __post_init__(self) -> None:
        """Refuse missing columns, and columns of another length or dtype."""
        held = {name: (values.dtype, values.shape) for name, values in self.columns.items()}
        shape = self.columns["token_ids"].shape
        if held != {name: (dtype, shape) for name, dtype in COLUMNS.items()}:
            raise ValueError(f"sample {self.sample_idx} has the columns {held}; every column of COLUMNS needs a source")

    @property
    def token_ids(self) -> Int32[np.ndarray, " tokens"]:
        """The tokens' ids."""
        return self.columns["token_ids"]

    @property
    def tokens(self) -> int:
        """How many tokens the sample has."""
        return len(self.token_ids)

    def cut(self, tokens: int) -> "Sample":
        """Return the sample with only its first `tokens` tokens; it must have no activations
        yet.
        """
        return replace(self, columns={name: values[:tokens] for name, values in self.columns.items()})

    def only(self, rows: Bool[np.ndarray, " tokens"]) -> "Sample":
        """Return the sample with only these tokens, which keep their positions; likewise."""
        return replace(self, columns={name: values[rows] for name, values in self.columns.items()})

    def with_activations(self, activations: Mapping[Tap, Activation]) -> "Sample":
        """Return the sample with these activations."""
        return replace(self, activations=activations)
