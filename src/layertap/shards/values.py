"""What a format writes of a shard at a tap, one sample after another.

Threads make these values a little ahead of the format that takes them (threads.py), and nothing
keeps them when they are written. So they come once, and in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from layertap.core.columns import Norms
from layertap.core.sample import Activation


@dataclass(frozen=True, eq=False)
class TapValues:
    """The samples of a shard at a tap."""

    width: int
    samples: Iterable[tuple[Activation, Norms]]
    """Of each sample the activation, in the storage dtype, and the norms of its tokens."""
