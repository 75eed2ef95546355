"""Measure distances between an array's rows and the right rows.

An error is relative and for one token: the Euclidean distance from the truth, divided by the
truth's length. In trained models, some tokens have activations a hundred times as long as the
others, and a distance over all tokens would measure only those. So arrays are judged by the median
over tokens.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

Rows = Float[np.ndarray, "tokens width"]
PerToken = Float32[np.ndarray, " tokens"]

_SMALL = 1e-12


def token_errors(found: Rows, truth: Rows) -> PerToken:
    """Return the error of each row.

    It is NaN if a number is not finite, and infinity if the truth is 0 but the row is not.
    """
    distances, lengths = row_lengths(found - truth), row_lengths(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = distances / lengths
    return np.where((distances == 0) & (lengths == 0), np.float32(0), errors).astype(np.float32)


def token_cosines(found: Rows, truth: Rows) -> PerToken:
    """Return the cosine of the angle between each pair of rows; NaN if one of them is 0."""
    found, truth = _wide_enough(found), _wide_enough(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        products = np.einsum("td,td->t", found, truth)
        return (products / row_lengths(found) / row_lengths(truth)).astype(np.float32)


def row_lengths(rows: Rows) -> Float[np.ndarray, " tokens"]:
    """Return the Euclidean length of each row."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.linalg.norm(_wide_enough(rows), axis=-1)


def _wide_enough(rows: Rows) -> Rows:
    """Convert to float64 if squares would overflow or underflow float32."""
    size = np.max(np.abs(rows), initial=0, where=np.isfinite(rows))
    return rows if _SMALL < size < 1 / _SMALL or size == 0 else rows.astype(np.float64)


def median(values: Sequence[np.ndarray] | np.ndarray) -> float:
    """Return the median, ignoring NaN; NaN if nothing else is there."""
    flat = np.concatenate([np.ravel(one) for one in values]) if not isinstance(values, np.ndarray) else values.ravel()
    numbers = flat[~np.isnan(flat)]
    return float(np.median(numbers)) if numbers.size else float("nan")
