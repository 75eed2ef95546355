"""What every dump becomes, whichever file it was in.

A dump is some prompts, as token ids, and arrays with a row for each token of them. Arrays are read
one after the other when they are looked at, and no further than the first tokens of the first
prompts, so memory does not grow with the file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from layertap.compare.claims import Claim


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sequence that the other tool ran."""

    name: str
    """Where in the dump it is from, in words."""
    token_ids: Int32[np.ndarray, " tokens"]
    """Without padding; all that are read."""
    before: Int32[np.ndarray, " pads"]
    """The padding on its left, as the file has it."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class DumpArray:
    """Rows for the tokens of each prompt."""

    name: str
    dtype: str
    """As it is stored."""
    width: int
    claim: Claim | None
    """What its name, or its place among others, says it is."""
    read: Callable[[int], list[np.ndarray]]
    """The rows of the first so many tokens of each prompt, [rows, width] float32; of shorter
    prompts all that there are, which may be more or less than their tokens."""
    remark: str = ""
    """What is wrong with the way it is stored."""


@dataclass(frozen=True, eq=False)
class Dump:
    """All that was recognised in a file or folder."""

    kind: str
    """What it is, in words."""
    prompts: Sequence[Prompt]
    arrays: Sequence[DumpArray]
    remarks: Sequence[str] = ()
    """What was left out, and why."""


@dataclass(frozen=True)
class Limits:
    """How much of a dump is read."""

    samples: int
    tokens: int
    """Of each sample."""
