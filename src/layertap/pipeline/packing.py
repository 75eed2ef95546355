"""Packing: which sample goes into which row of which step.

These are pure functions of the samples' lengths, so every run that reads a window packs it the same
way.

If a sample begins with a prefix that is computed once (prefix.py), only the rest of it is placed.
Samples with different prefixes, or with none, are never in one step.

Rows come in a short ladder of lengths: `row_length`, twice, four times, ... up to the longest
sample allowed. Samples are placed longest first, each into the open row that it fills best, else
into a new row of the shortest rung that holds it (best-fit decreasing; at most 11/9 of the optimal
number of rows, Johnson 1974). So short samples fill the gaps of long rows.

On one device, rows of the first rung run `batch_size` at a time, the remaining ones one at a time,
and longer rows one at a time: no step ever holds an empty row, and default settings compile four
programs. On ARC-AGI-1 training 97 to 98 % of computed tokens are real (docs/LOG.md). On several
devices every count is per device, and only the last step of a length may hold empty rows. The
longest steps run first: a run that does not fit in memory fails at its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

_LENGTH_MULTIPLE = 256
_PREFIX_MULTIPLE = 128  # a multiple of every kernel's blocks

Kind = tuple[int, int, int]
"""Rows, length and prefix of a step."""


@dataclass(frozen=True)
class Placement:
    """The last `length` tokens of sample number `sample` of the window, at `start` in row `row`.
    These are all its tokens except those of its step's prefix.
    """

    sample: int
    row: int
    start: int
    length: int


@dataclass(frozen=True)
class Step:
    """One device call: `rows` rows of `length` tokens, and their samples, from left to right."""

    rows: int
    length: int
    placements: tuple[Placement, ...]
    prefix: int = 0
    """The prefix of all its samples, counted from 1; 0: none."""

    @property
    def kind(self) -> Kind:
        """The values that decide its program."""
        return self.rows, self.length, self.prefix

    @property
    def computed_tokens(self) -> int:
        """How many tokens the device computes."""
        return self.rows * self.length


def row_ladder(row_length: int, longest: int) -> tuple[int, ...]:
    """The row lengths, ascending: `row_length`, doubled until a row holds `longest` tokens."""
    rungs = [row_length]
    while rungs[-1] < longest:
        doubled = 2 * rungs[-1]
        enough = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        rungs.append(min(doubled, enough))
    return tuple(rungs)


def prefix_row(tokens: int) -> int:
    """The length of the row that computes a prefix of so many tokens."""
    return -(-tokens // _PREFIX_MULTIPLE) * _PREFIX_MULTIPLE


def step_shapes(ladder: Sequence[int], batch_size: int, devices: int = 1) -> list[tuple[int, int]]:
    """Every (rows, length) that steps can have, in the order in which `pack_window` runs them."""
    shapes = [(devices, length) for length in reversed(ladder)]
    return shapes if batch_size == 1 else [*shapes[:-1], (batch_size * devices, ladder[0]), shapes[-1]]


def step_kinds(ladder: Sequence[int], batch_size: int, devices: int = 1, prefixes: int = 0) -> list[Kind]:
    """The same for steps that use one of so many prefixes, or none."""
    return [(*shape, prefix) for prefix in range(prefixes + 1) for shape in step_shapes(ladder, batch_size, devices)]


def pack_window(
    lengths: Sequence[int],
    ladder: Sequence[int],
    batch_size: int,
    devices: int = 1,
    prefixes: Sequence[int] | None = None,
) -> list[Step]:
    """Pack samples of these lengths (1 to the last rung) into steps, each sample once.

    A step has `batch_size` rows of the first rung for each of `devices`, or one row for each.
    `prefixes` has the number of each sample's prefix, whose tokens are not in `lengths`.
    """
    numbers = [0] * len(lengths) if prefixes is None else prefixes
    steps = []
    for prefix in sorted(set(numbers)):
        rows = _fill_rows([n for n, own in enumerate(numbers) if own == prefix], lengths, ladder, devices)
        for length in reversed(ladder):
            of_length = [row for row in rows if row.length == length]
            while of_length:
                full = length == ladder[0] and len(of_length) >= batch_size * devices
                count = (batch_size if full else 1) * devices
                steps.append(_step(of_length[:count], count, lengths, prefix))
                of_length = of_length[count:]
    return steps


def batch_arrays(
    step: Step, token_ids: Sequence[Int32[np.ndarray, " _tokens"]]
) -> tuple[Int32[np.ndarray, "rows length"], Int32[np.ndarray, "rows length"]]:
    """The input of the device: token ids and `seg_start`, [rows, length] each.

    Padding has token 0 and its own index as `seg_start`: it sees only itself, and nothing sees it.
    """
    tokens = np.zeros((step.rows, step.length), np.int32)
    seg_start = np.tile(np.arange(step.length, dtype=np.int32), (step.rows, 1))
    for place in step.placements:
        span = slice(place.start, place.start + place.length)
        tokens[place.row, span] = token_ids[place.sample][-place.length :]
        seg_start[place.row, span] = place.start
    return tokens, seg_start


@dataclass
class _Row:
    length: int
    used: int
    samples: list[int]


def _fill_rows(samples: Sequence[int], lengths: Sequence[int], ladder: Sequence[int], devices: int) -> list[_Row]:
    rows: list[_Row] = []
    for sample in sorted(samples, key=lambda index: (-lengths[index], index)):
        need = lengths[sample]
        fitting = [row for row in rows if row.length - row.used >= need]
        if fitting:
            row = min(fitting, key=lambda row: row.length - row.used)
        else:
            length = next(rung for rung in ladder if rung >= need)
            # Every device runs a long row if one does: open one for each, for shorter samples to
            # fill.
            opened = [_Row(length, 0, []) for _ in range(1 if length == ladder[0] else devices)]
            rows += opened
            row = opened[0]
        row.used += need
        row.samples.append(sample)
    return rows


def _step(rows: Sequence[_Row], count: int, lengths: Sequence[int], prefix: int) -> Step:
    placements = []
    for number, row in enumerate(rows):
        start = 0
        for sample in row.samples:
            placements.append(Placement(sample, number, start, lengths[sample]))
            start += lengths[sample]
    return Step(count, rows[0].length, tuple(placements), prefix)
