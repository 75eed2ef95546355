"""One array with all its candidates, and the pairing of its rows with rows of the truth.

`Truth` holds the activations of our model at every candidate, for the tokens of some prompts. An
`Alignment` says which row of the array is compared with which row of a truth. The plain one
compares each token with itself; others shift it, or use rows from a truth of other prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layertap.compare.candidates import Candidate, FinalNorm
from layertap.compare.claims import Claim
from layertap.compare.measure import Rows, median, token_errors
from layertap.compare.rounding import Grid, grid_of
from layertap.core.taps import Tap

SEARCHED = 64
"""How many rows are used while many candidates are tried; the final choice uses all rows."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Activations of some prompts, [tokens, width] float32 each."""

    prompts: Sequence[Mapping[Tap, np.ndarray]]
    final_norm: FinalNorm | None

    def rows(self, candidate: Candidate, prompt: int, index: np.ndarray) -> Rows:
        """Return some rows of a prompt."""
        values = self.prompts[prompt][candidate.tap][index]
        return self.normed(values) if candidate.normed else values

    def normed(self, values: Rows) -> Rows:
        """Apply the final norm to rows."""
        assert self.final_norm is not None, "there are no candidates with the norm then"
        return self.final_norm(values)

    def lengths(self) -> list[int]:
        """Return the number of tokens of each prompt."""
        return [len(next(iter(taps.values()))) for taps in self.prompts]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Rows of an array, paired with rows of a truth."""

    truth: Truth
    pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    """For each prompt: rows of the array, and their rows of the truth."""
    fault: str = ""
    """What went wrong where this is right; empty where nothing did."""
    shift: int | None = None
    """By how many tokens each row is shifted, where that is all."""

    @property
    def count(self) -> int:
        """How many rows are compared."""
        return sum(len(rows) for rows, _ in self.pairs)


@dataclass(frozen=True, eq=False)
class Case:
    """An array and what it could be."""

    name: str
    found: Sequence[Rows]
    """The rows of each prompt, float32."""
    candidates: Sequence[Candidate]
    """All of its width."""
    truth: Truth
    claim: Claim | None = None
    prompts: Sequence[str] = ()
    """What the prompts are called."""

    @cached_property
    def grid(self) -> Grid:
        """What its numbers were rounded to."""
        return grid_of(self.found)

    def place(self, prompt: int, row: int) -> str:
        """A row in words."""
        return f"{self.prompts[prompt] if self.prompts else f'sample {prompt}'}, row {row}"

    def shifted(self, by: int) -> Alignment:
        """Row t held against token t + `by`."""
        pairs = []
        for rows, tokens in zip(map(len, self.found), self.truth.lengths(), strict=True):
            kept = np.arange(max(0, -by), max(0, -by, min(rows, tokens - by)))
            pairs.append((kept, kept + by))
        return Alignment(self.truth, pairs, _shift_in_words(by), by)

    def rows(self, alignment: Alignment, candidate: Candidate) -> Iterator[tuple[Rows, Rows]]:
        """What is found and what should be, prompt by prompt."""
        for prompt, (rows, places) in enumerate(alignment.pairs):
            found = self.found[prompt][rows]
            yield found, alignment.truth.rows(candidate, prompt, places) if len(rows) else found

    def searched(self, alignment: Alignment, candidate: Candidate) -> tuple[Rows, Rows]:
        """The same of at most `SEARCHED` rows from all over, those that are finite."""
        step = max(1, -(-alignment.count // SEARCHED))
        thin = Alignment(alignment.truth, [(rows[::step], places[::step]) for rows, places in alignment.pairs])
        found, truth = (np.concatenate(parts) for parts in zip(*self.rows(thin, candidate), strict=True))
        finite = np.isfinite(found).all(axis=1)
        return found[finite], truth[finite]

    def ranking(self, alignment: Alignment) -> list[tuple[float, Candidate]]:
        """The candidates by the median error of the rows that are searched, nearest first."""
        errors = [median(token_errors(*self.searched(alignment, candidate))) for candidate in self.candidates]
        return sorted(zip(errors, self.candidates, strict=True), key=lambda entry: (np.isnan(entry[0]), entry[0]))


def _shift_in_words(by: int) -> str:
    if by == 0:
        return ""
    tokens = f"{abs(by)} token{'s' if abs(by) > 1 else ''}"
    return f"shifted by {tokens}: row t is what token t {'+' if by > 0 else '-'} {abs(by)} gives"
