"""What is stored: a sample's activations, and what a reader needs to know of the sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from layertap.tap import Tap

Activation = Float[np.ndarray, "tokens hidden"]


@dataclass(frozen=True, eq=False)
class StoredSample:
    """One sample on its way to disk: real tokens only, never padding."""

    sample_idx: int
    task_id: str
    text_preview: str
    token_ids: Int32[np.ndarray, " tokens"]
    activations: Mapping[Tap, Activation]
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the prompt was made of its task: plain numbers, strings, tuples and mappings."""

    @property
    def tokens(self) -> int:
        """How many tokens the sample has."""
        return len(self.token_ids)
