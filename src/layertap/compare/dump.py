"""The common form of all dumps, whatever file they come from.

A dump is some prompts, as token ids, and arrays with one row for each of their tokens. Arrays are
read one after another when they are compared, and only the first tokens of the first prompts, so
memory does not grow with the file.
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
    """Its place in the dump, in words."""
    token_ids: Int32[np.ndarray, " tokens"]
    """The token ids, without padding."""
    before: Int32[np.ndarray, " pads"]
    """The padding on its left, as in the file."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class DumpArray:
    """Rows for the tokens of each prompt."""

    name: str
    dtype: str
    """The stored dtype."""
    width: int
    claim: Claim | None
    """What its name, or its place among others, claims."""
    read: Callable[[int], list[np.ndarray]]
    """Reads the rows of the first tokens of each prompt, [rows, width] float32; for shorter prompts
    all rows, which may be more or fewer than their tokens."""
    remark: str = ""
    """A fault in the way it is stored."""


@dataclass(frozen=True, eq=False)
class Dump:
    """Everything that was recognised in a file or folder."""

    kind: str
    """The kind of dump, in words."""
    prompts: Sequence[Prompt]
    arrays: Sequence[DumpArray]
    remarks: Sequence[str] = ()
    """What was left out, and why."""


@dataclass(frozen=True)
class Limits:
    """How much of a dump is read."""

    samples: int
    tokens: int
    """Tokens of each sample."""
