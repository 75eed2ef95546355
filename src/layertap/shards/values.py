"""The values that a format writes for a tap of a shard, one sample after another.

Threads make these values a little ahead of the format that takes them (threads.py). Nothing keeps
them once they are written. So each comes once, and in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation


class SampleValues(NamedTuple):
    """The values to store for a sample at a tap."""

    activation: Activation
    """In the storage dtype. These are codes where that is quantised."""
    norms: Norms
    scales: np.ndarray | None = None
    """float32 [tokens] with codes (quantised.py); None with values."""


@dataclass(frozen=True, eq=False)
class TapValues:
    """The samples of a shard at a tap."""

    width: int
    samples: Iterable[SampleValues]
