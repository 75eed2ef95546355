"""What a format writes of a shard at a tap, one sample after another.

Threads make these values a little ahead of the format that takes them (threads.py), and nothing
keeps them when they are written. So they come once, and in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation


class SampleValues(NamedTuple):
    """What is stored of a sample at a tap."""

    activation: Activation
    """In the storage dtype: codes, where that is quantised."""
    norms: Norms
    scales: np.ndarray | None = None
    """float32 [tokens] beside codes (quantised.py); None beside values."""


@dataclass(frozen=True, eq=False)
class TapValues:
    """The samples of a shard at a tap."""

    width: int
    samples: Iterable[SampleValues]
