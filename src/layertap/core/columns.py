"""Columns: arrays that go with the tokens of a sample, one value a token, from the prompt to the
reader.

This is the only list of them. Both formats store each column, `verify` checks it, the reader hands
it out, and the manifest says which columns a run stored and as what. To add a column, add a line to
`COLUMNS` and its values to `token_columns`, or where else samples are made. A run that was stored
before then lacks the column and stays readable.

    token_ids   the tokenizer's number of the token
    positions   the token's place in its sample, from 0
    flags       bits: FIRST, SPECIAL

Norms are no column: there is one for each token and tap. They are float32, Euclidean, of the values
as stored. A sink is a token whose norm at a tap is more than a factor times the usual norm of its
sample there. The usual norm is the lower median of the sample's norms, which few sinks cannot move.
So a sink depends on its sample alone, not on where a shard ends, and you choose the factor when you
read.
"""

from collections.abc import Mapping, Set
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

COLUMNS: Mapping[str, np.dtype] = {
    "token_ids": np.dtype(np.int32),
    "positions": np.dtype(np.int32),
    "flags": np.dtype(np.uint8),
}

FIRST, SPECIAL, SINK = 1, 2, 4
"""Bits of flags. Format version 1 stored SINK; now it is found from the norms."""
SINK_FACTOR = 10.0
"""How many times the usual norm makes a sink, where you choose no other factor."""

Norms = Float32[np.ndarray, " tokens"]
Columns = Mapping[str, np.ndarray]


def token_columns(token_ids: Int32[np.ndarray, " tokens"], special: Set[int]) -> dict[str, np.ndarray]:
    """The columns of a sample with these tokens, of which those in `special` are special ones."""
    flags = np.where(np.isin(token_ids, sorted(special)), np.uint8(SPECIAL), np.uint8(0))
    flags[:1] |= FIRST
    return {
        "token_ids": token_ids,
        "positions": np.arange(len(token_ids), dtype=np.int32),
        "flags": flags,
    }


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
