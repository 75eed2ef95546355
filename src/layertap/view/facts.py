"""The facts about a shard or sample, in numbers and words, for a person or a program."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from layertap.core.columns import FIRST, NO_LABELS, PREFIX, ROLES, SIDES, SINK, SPECIAL, TEST
from layertap.view.shard import SampleSeen, ShardSeen, TapSeen


@dataclass(frozen=True)
class NormFacts:
    """The norms at one tap."""

    smallest: float | None
    """This and the next four are None where no norm is finite."""
    median: float | None
    largest: float | None
    sample_idx: int | None
    """The sample with the largest norm; `position` is its place there."""
    position: int | None
    sinks: int
    nonfinite: int


def norm_facts(at_tap: TapSeen, seen: ShardSeen) -> NormFacts:
    """Summarise the norms of a shard's tokens, or of its one sample's tokens."""
    norms, flags = np.concatenate(at_tap.norms), np.concatenate(at_tap.flags)
    finite = np.isfinite(norms)
    sinks, nonfinite = (int(found.sum()) for found in ((flags & SINK) > 0, ~finite))
    if not finite.any():
        return NormFacts(None, None, None, None, None, sinks, nonfinite)
    top = int(np.argmax(np.where(finite, norms, -1)))
    begins = np.cumsum([0, *map(len, at_tap.norms)])
    holder = next(number for number, (begin, end) in enumerate(pairwise(begins)) if begin <= top < end)
    sample = seen.samples[holder]
    smallest, median, largest = (float(found(norms[finite])) for found in (np.min, np.median, np.max))
    position = int(sample.positions[top - begins[holder]])
    return NormFacts(smallest, median, largest, sample.sample_idx, position, sinks, nonfinite)


def flag_names(flags: int) -> Iterator[str]:
    """Return the names of the flags that are the same at all taps."""
    return (name for name, bit in (("first", FIRST), ("special", SPECIAL), ("prefix", PREFIX)) if flags & bit)


@dataclass(frozen=True)
class TokenLabels:
    """The labels of one token, in words and plain numbers."""

    role: str
    example: int | str | None
    """The train pair, from 0; "test"; None outside grids."""
    side: str | None
    row: int | None
    col: int | None
    colours: tuple[int, ...]
    """The colours of its cells."""

    def __str__(self) -> str:
        """The token's place, such as `train 0 input 2,3: 5`; empty outside grids."""
        if self.example is None:
            return ""
        pair = self.example if self.example == "test" else f"train {self.example}"
        cell = f" {self.row},{self.col}: {' '.join(map(str, self.colours))}" if self.colours else ""
        return f"{pair} {self.side}{cell}"


def token_labels(sample: SampleSeen, token: int) -> TokenLabels | None:
    """Return the labels of a token; None where the run stored none."""
    if not NO_LABELS.keys() <= sample.labels.keys():
        return None
    role, example, side, row, col, colours, cells = (int(sample.labels[name][token]) for name in NO_LABELS)
    digits = tuple(colours // 10**place % 10 for place in range(cells)) if colours >= 0 else ()
    in_grid = side > 0
    return TokenLabels(
        role=ROLES[role] if role < len(ROLES) else str(role),
        example=("test" if example == TEST else example) if in_grid else None,
        side=(SIDES[side] if side < len(SIDES) else str(side)) if in_grid else None,
        row=row if cells else None,
        col=col if cells else None,
        colours=digits,
    )
