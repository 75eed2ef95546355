"""Which of the computed tokens are stored: `--keep_tokens`.

The prefix of every prompt of a run (`no_prefix`) is what is flagged `prefix` (prefix.py).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from layertap.core.columns import select
from layertap.core.sample import Sample
from layertap.core.selection import ALL


@dataclass(frozen=True)
class KeptTokens:
    """The choice of a run; without arguments it keeps all tokens."""

    names: tuple[str, ...] = (ALL,)
    """As `core.selection` has them."""

    def rows(self, sample: Sample) -> Bool[np.ndarray, " tokens"] | None:
        """Which tokens of a whole sample are kept; None: all."""
        return None if ALL in self.names else select(sample.columns, self.names)

    def of(self, sample: Sample) -> Sample:
        """The kept part of a whole sample; maybe no token."""
        rows = self.rows(sample)
        return sample if rows is None else sample.only(rows)
