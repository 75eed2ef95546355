"""Columns: arrays that go with the tokens of a sample, one value a token, from the prompt to the
reader.

This is the only list of them. Both formats store each column, `verify` checks it, the reader hands
it out, and the manifest says which columns a run stored and as what. To add a column, add a line to
`COLUMNS` and its values to `token_columns`, or where else samples are made. A run that was stored
before then lacks the column and stays readable.

    token_ids   the tokenizer's number of the token
    positions   the token's place in its sample, from 0
    flags       bits: FIRST, SPECIAL
    role        who says it, by its number in ROLES
    example     ARC: the train pair of its grid, as shown, from 0; or TEST; or NONE
    side        ARC: which grid of the pair, by its number in SIDES
    row, col    ARC: the place in its grid of the token's first cell, from 0; or NONE
    colours     ARC: the colours of all its cells, as shown, one decimal digit each, the first
                cell's the lowest (equal to the colour where there is one cell); or NONE
    cells       ARC: how many cells the token has characters of

The first three follow from the tokens, the others are labels: they come from the prompt's making.

Norms are no column: there is one for each token and tap. They are float32, Euclidean, of the values
as stored. A sink is a token whose norm at a tap is more than a factor times the usual norm of its
sample there. The usual norm is the lower median of the sample's norms, which few sinks cannot move.
So a sink depends on its sample alone, not on where a shard ends, and you choose the factor when you
read.
"""

from collections.abc import Iterable, Mapping, Set
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from layertap.core.selection import ANSWER, CELLS, ROLE_NAMES

COLUMNS: Mapping[str, np.dtype] = {
    "token_ids": np.dtype(np.int32),
    "positions": np.dtype(np.int32),
    "flags": np.dtype(np.uint8),
    "role": np.dtype(np.uint8),
    "example": np.dtype(np.int16),
    "side": np.dtype(np.uint8),
    "row": np.dtype(np.int8),
    "col": np.dtype(np.int8),
    "colours": np.dtype(np.int64),
    "cells": np.dtype(np.uint8),
}

ROLES = ROLE_NAMES
"""What a token can be part of."""
SIDES = ("none", "input", "output")
"""Which grid of a pair; none outside grids."""
_BY_ROLE = {f"role:{name}": number for number, name in enumerate(ROLES)} | {ANSWER: ROLES.index("assistant")}
NONE, TEST = -1, -2
"""Instead of a number: there is none; it is the test pair."""
NO_LABELS: Mapping[str, int] = {
    "role": ROLES.index("text"),
    "example": NONE,
    "side": SIDES.index("none"),
    "row": NONE,
    "col": NONE,
    "colours": NONE,
    "cells": 0,
}
"""The labels of a token of plain text."""

FIRST, SPECIAL, SINK = 1, 2, 4
"""Bits of flags. Format version 1 stored SINK; now it is found from the norms."""
SINK_FACTOR = 10.0
"""How many times the usual norm makes a sink, where you choose no other factor."""

Norms = Float32[np.ndarray, " tokens"]
Columns = Mapping[str, np.ndarray]


def token_columns(
    token_ids: Int32[np.ndarray, " tokens"], special: Set[int], labels: Columns | None = None
) -> dict[str, np.ndarray]:
    """The columns of a sample with these tokens, of which those in `special` are special ones.

    `labels` has the values of each column of `NO_LABELS`; without it all is plain text.
    """
    if labels is None:
        labels = {name: np.full(len(token_ids), value, COLUMNS[name]) for name, value in NO_LABELS.items()}
    return {**derived_columns(token_ids, special), **{name: labels[name] for name in NO_LABELS}}


def derived_columns(token_ids: Int32[np.ndarray, " tokens"], special: Set[int]) -> dict[str, np.ndarray]:
    """The columns that follow from the tokens alone."""
    flags = np.where(np.isin(token_ids, sorted(special)), np.uint8(SPECIAL), np.uint8(0))
    flags[:1] |= FIRST
    return {
        "token_ids": token_ids,
        "positions": np.arange(len(token_ids), dtype=np.int32),
        "flags": flags,
    }


def selected(columns: Columns, names: Iterable[str]) -> Bool[np.ndarray, " tokens"]:
    """Which tokens the labels say are meant by names of `core.selection`, but for `all` and
    `no_prefix`, of which labels do not tell.
    """
    chosen = np.zeros(len(columns["role"]), bool)
    for name in names:
        chosen |= columns["cells"] > 0 if name == CELLS else columns["role"] == _BY_ROLE[name]
    return chosen


def usual_norms(norms: Norms, offsets: Int64[np.ndarray, " samples_and_end"]) -> Float32[np.ndarray, " samples"]:
    """The lower median of each sample's finite norms, and infinity where it has none.

    Sample i has the norms `offsets[i]` to `offsets[i + 1]`.
    """
    return np.array([_lower_median(norms[begin:end]) for begin, end in pairwise(offsets.tolist())], np.float32)


def find_sinks(norms: Norms, usual: Float32[np.ndarray, " tokens"], factor: float) -> Bool[np.ndarray, " tokens"]:
    """Which tokens are sinks, given the usual norm of each token's sample."""
    return norms > factor * usual


def _lower_median(norms: Norms) -> float:
    finite = norms[np.isfinite(norms)]
    return float(np.partition(finite, middle)[middle]) if (middle := (len(finite) - 1) // 2) >= 0 else np.inf
