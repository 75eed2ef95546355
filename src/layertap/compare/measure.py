"""Distances between rows of numbers: of an array's tokens, and of what they should be.

An error is relative and of one token: the Euclidean distance from the truth, divided by the
truth's length. Trained models have tokens whose activations are a hundred times as long as the
others'; a distance over all tokens at once would be theirs alone. So arrays are judged by the
median over their tokens.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

Rows = Float[np.ndarray, "tokens width"]
PerToken = Float32[np.ndarray, " tokens"]

_SMALL = 1e-12


def token_errors(found: Rows, truth: Rows) -> PerToken:
    """Of each row; NaN where a number is not finite, infinity where the truth is 0 and it is not
    found.
    """
    distances, lengths = row_lengths(found - truth), row_lengths(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = distances / lengths
    return np.where((distances == 0) & (lengths == 0), np.float32(0), errors).astype(np.float32)


def token_cosines(found: Rows, truth: Rows) -> PerToken:
    """Of the angle between each two rows; NaN where one of them is 0."""
    found, truth = _wide_enough(found), _wide_enough(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        products = np.einsum("td,td->t", found, truth)
        return (products / row_lengths(found) / row_lengths(truth)).astype(np.float32)


def row_lengths(rows: Rows) -> Float[np.ndarray, " tokens"]:
    """The Euclidean length of each row."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.linalg.norm(_wide_enough(rows), axis=-1)


def _wide_enough(rows: Rows) -> Rows:
    """In float64 where squares would be beyond float32, or so small that they are 0."""
    size = np.max(np.abs(rows), initial=0, where=np.isfinite(rows))
    return rows if _SMALL < size < 1 / _SMALL or size == 0 else rows.astype(np.float64)


def median(values: Sequence[np.ndarray] | np.ndarray) -> float:
    """Of what is a number; NaN where nothing is."""
    flat = np.concatenate([np.ravel(one) for one in values]) if not isinstance(values, np.ndarray) else values.ravel()
    numbers = flat[~np.isnan(flat)]
    return float(np.median(numbers)) if numbers.size else float("nan")
