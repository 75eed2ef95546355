"""Columns: arrays with one value per token of a sample, from the prompt to the reader.  This is the
only list of them. Both formats store each column, `verify` checks it, the reader returns it, and
the manifest lists the columns of a run with their dtypes. To add a column, add a line to `COLUMNS`
and its values to `token_columns`, or wherever else samples are made. Older runs then lack the
column and stay readable.

    token_ids   the token's id in the tokenizer
    positions   the token's place in its sample, from 0
    flags       bits: FIRST, SPECIAL, PREFIX
    role        who says it: an index into ROLES
    example     ARC: the train pair of its grid, in the order shown, from 0; or TEST; or NONE
    side        ARC: which grid of the pair: an index into SIDES
    row, col    ARC: the row and column of the token's first cell in its grid, from 0; or NONE
    colours     ARC: the colours of all its cells, as shown, one decimal digit each, the first
                cell's the lowest (for one cell, the colour itself); or NONE
    cells       ARC: how many cells the token covers, in whole or in part

The first three follow from the tokens, except PREFIX, which follows from template and tokenizer
(pipeline/prefix.py). The others are labels, which are set when the prompt is made.

Norms are not a column, because there is one for each token and tap. They are float32
Euclidean norms of the stored values. A sink is a token whose norm at a tap is more than a factor
times the usual norm of its sample at that tap. The usual norm is the lower median of the sample's
norms, which a few sinks cannot move. So a sink depends only on its sample, not on where a shard
ends, and you choose the factor when you read.
"""

from collections.abc import Iterable, Mapping, Set
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from layertap.core.selection import ANSWER, CELLS, NO_PREFIX, ROLE_NAMES

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
"""Which grid of a pair; `none` outside grids."""
_BY_ROLE = {f"role:{name}": number for number, name in enumerate(ROLES)} | {ANSWER: ROLES.index("assistant")}
NONE, TEST = -1, -2
"""In place of a number: no value; the test pair."""
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

FIRST, SPECIAL, SINK, PREFIX = 1, 2, 4, 8
"""Bits of flags. Format version 1 stored SINK; now it is found from the norms. PREFIX is what the
prompts of a run begin with."""
SINK_FACTOR = 10.0
"""The default factor: a sink's norm exceeds this many times the usual norm."""

Norms = Float32[np.ndarray, " tokens"]
Columns = Mapping[str, np.ndarray]


def token_columns(
    token_ids: Int32[np.ndarray, " tokens"], special: Set[int], labels: Columns | None = None
) -> dict[str, np.ndarray]:
    """Make the columns of a sample with these tokens; `special` has the ids of special tokens.

    `labels` has the values of each column of `NO_LABELS`; without it, every token is plain text.
    """
    if labels is None:
        labels = {name: np.full(len(token_ids), value, COLUMNS[name]) for name, value in NO_LABELS.items()}
    return {**derived_columns(token_ids, special), **{name: labels[name] for name in NO_LABELS}}


def derived_columns(token_ids: Int32[np.ndarray, " tokens"], special: Set[int]) -> dict[str, np.ndarray]:
    """Make the columns that follow from the tokens alone."""
    flags = np.where(np.isin(token_ids, sorted(special)), np.uint8(SPECIAL), np.uint8(0))
    flags[:1] |= FIRST
    return {
        "token_ids": token_ids,
        "positions": np.arange(len(token_ids), dtype=np.int32),
        "flags": flags,
    }


def select(columns: Columns, names: Iterable[str]) -> Bool[np.ndarray, " tokens"]:
    """Return which tokens these names of `core.selection` select, by labels and flags.

    `all` is not allowed here. `flags` are needed for `no_prefix` only.
    """
    chosen = np.zeros(len(columns["role"]), bool)
    for name in names:
        if name == NO_PREFIX:
            chosen |= (columns["flags"] & PREFIX) == 0
        else:
            chosen |= columns["cells"] > 0 if name == CELLS else columns["role"] == _BY_ROLE[name]
    return chosen


def usual_norms(norms: Norms, offsets: Int64[np.ndarray, " samples_and_end"]) -> Float32[np.ndarray, " samples"]:
    """Return the lower median of each sample's finite norms; infinity if a sample has none.

    Sample i has the norms `offsets[i]` to `offsets[i + 1]`.
    """
    return np.array([_lower_median(norms[begin:end]) for begin, end in pairwise(offsets.tolist())], np.float32)


def find_sinks(norms: Norms, usual: Float32[np.ndarray, " tokens"], factor: float) -> Bool[np.ndarray, " tokens"]:
    """Return which tokens are sinks, given the usual norm of each token's sample."""
    return norms > factor * usual


def _lower_median(norms: Norms) -> float:
    finite = norms[np.isfinite(norms)]
    return float(np.partition(finite, middle)[middle]) if (middle := (len(finite) - 1) // 2) >= 0 else np.inf
