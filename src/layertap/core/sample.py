"""A sample: one sequence of tokens that the model runs over, with what is known of it.

Prompts make samples, the pipeline adds their activations, a format stores them. A sample holds real
tokens only, never padding.
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
    """One sample. Raises ValueError where a column is missing or has another length or dtype."""

    sample_idx: int
    """Its place among all samples of the dataset, from 0."""
    task_id: str
    """The task or document that it was made of."""
    text_preview: str
    """The first 200 characters of its text."""
    columns: Columns
    """By name, one value a token: all of `core.columns.COLUMNS`."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the prompt was made of its task: plain numbers, strings, tuples and mappings."""
    activations: Mapping[Tap, Activation] = field(default_factory=dict)
    """As the device gave them: bfloat16 in a bfloat16 run. Empty until the model has run."""

    def __post_init__(self) -> None:
        """Refuse a column without a source."""
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
        """The sample with its first `tokens` tokens; for samples that have no activations yet."""
        return replace(self, columns={name: values[:tokens] for name, values in self.columns.items()})

    def only(self, rows: Bool[np.ndarray, " tokens"]) -> "Sample":
        """The sample with these tokens of it, which keep their positions; likewise."""
        return replace(self, columns={name: values[rows] for name, values in self.columns.items()})

    def with_activations(self, activations: Mapping[Tap, Activation]) -> "Sample":
        """The sample as the model left it."""
        return replace(self, activations=activations)
