"""Changes that tools make before they store activations: scale, normalise, centre.

Each fit gets rows of the array and of the truth, and finds the constants of its kind. Its
prediction is then compared with all rows, so that a fit with many constants cannot explain an array
by memorising it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from layertap.compare.measure import Rows, row_lengths, token_errors
from layertap.compare.rounding import FLOAT32, Freedom

Predict = Callable[[Rows], Rows]

SIMPLER = 4.0
"""How many times nearer an explanation must be than a simpler one to be preferred."""
_ENOUGH_ROWS = 8
_USUAL_LENGTH = 10.0  # rows longer than this many times the median do not decide constants
_NEAR = 0.05
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class Fitted:
    """A change with its constants."""

    fault: str
    """What was done, in words."""
    predict: Predict
    """Changes rows of the truth."""
    freedom: Freedom = "few"
    """How many constants it has."""
    constant: Rows | None = None
    """The vector that it adds to each token, if it does."""
    fit: "Fit | None" = None
    """The function that found the constants."""

    def stretch(self, rows: Rows) -> float:
        """Return by what factor the constant makes relative rounding errors larger.

        If most of an activation is the same in all tokens, the rest is shorter.
        """
        if self.constant is None or not len(rows):
            return 1.0
        lengths = row_lengths(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = row_lengths(rows - self.constant) / lengths
        return max(1.0, float(np.median(ratios[lengths > 0]))) if (lengths > 0).any() else 1.0


Fit = Callable[[Rows, Rows], Fitted | None]


def fit_scale(found: Rows, truth: Rows) -> Fitted | None:
    """Fit one factor for everything."""
    factor = _factor(found, truth)
    if not np.isfinite(factor) or factor == 0:
        return None
    root = sqrt(truth.shape[1])
    known = {root: ", the square root of its width", 1 / root: ", one over the square root of its width"}
    told = next((words for value, words in known.items() if abs(abs(factor) / value - 1) < 1e-3), "")
    return Fitted(f"multiplied by {_shown(factor, found, factor * truth)}{told}", lambda rows: rows * factor)


def _shown(factor: float, found: Rows, predicted: Rows) -> str:
    """Format a factor with as many digits as are known."""
    return f"{factor:.6g}" if np.median(token_errors(found, predicted)) < FLOAT32 else f"{factor:.3g}"


def fit_length(found: Rows, truth: Rows) -> Fitted | None:
    """Fit one length for all tokens."""
    lengths = row_lengths(found)
    length = np.float32(np.median(lengths)) if lengths.size else np.float32(0)
    if length == 0 or np.std(lengths) > 0.02 * length:
        return None
    root = sqrt(truth.shape[1])
    told = "the square root of its width" if abs(length / root - 1) < _NEAR / 2 else f"{length:.4g}"
    return Fitted(f"each token brought to the length {told}", lambda rows: _to_length(rows, length))


def fit_centred_channels(found: Rows, truth: Rows) -> Fitted | None:
    """Fit the subtraction of the mean over a token's channels."""
    del found, truth
    return Fitted("the mean over its channels was subtracted from each token", _centred)


def fit_layer_norm(found: Rows, truth: Rows) -> Fitted | None:
    """Fit the subtraction of the mean over a token's channels, and one length for all tokens."""
    fitted = fit_length(found, _centred(truth))
    if fitted is None:
        return None
    fault = "each token normalised over its channels to one mean and deviation, as LayerNorm without weights does"
    return Fitted(fault, lambda rows: fitted.predict(_centred(rows)))


def fit_offset(found: Rows, truth: Rows) -> Fitted | None:
    """Fit the subtraction of a constant vector, and perhaps one factor."""
    if len(found) < _ENOUGH_ROWS or is_constant(found):
        return None
    plain = np.median(truth - found, axis=0)
    factor = _factor(found - np.median(found, axis=0), truth - np.median(truth, axis=0))
    scaled = np.median(found - factor * truth, axis=0)
    words = "a constant vector was subtracted from all tokens, as centring on a mean does"
    simple = Fitted(words, lambda rows: rows - plain, "many", -plain)
    full = Fitted(
        f"{words}, and the rest multiplied by {_shown(factor, found, factor * truth + scaled)}",
        lambda rows: factor * rows + scaled,
        "many",
        scaled,
    )
    return _simpler(simple, full, found, truth)


def fit_channels(found: Rows, truth: Rows) -> Fitted | None:
    """Fit a factor for each channel, and perhaps a constant for each."""
    usual = _usual(truth)
    x, y = found[usual], truth[usual]
    if len(x) < 2 * _ENOUGH_ROWS or is_constant(x):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.nan_to_num(np.sum(x * y, axis=0) / np.sum(y * y, axis=0))
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        slopes = np.nan_to_num(np.sum((x - mean_x) * (y - mean_y), axis=0) / np.sum((y - mean_y) ** 2, axis=0))
    constants = mean_x - slopes * mean_y
    simple = Fitted(
        "each channel multiplied by a constant of its own, as a norm's weight does", lambda rows: rows * factors, "many"
    )
    full = Fitted(
        "each channel scaled and shifted by constants of its own, as standardising does",
        lambda rows: rows * slopes + constants,
        "many",
        constants,
    )
    return _simpler(simple, full, found, truth)


FITS: tuple[Fit, ...] = (
    fit_scale,
    fit_length,
    fit_centred_channels,
    fit_layer_norm,
    fit_offset,
    fit_channels,
)
"""From the simplest to the one with the most constants."""


def is_constant(rows: Rows) -> bool:
    """Return whether all rows are nearly equal: then constants alone would explain them."""
    middle = np.median(rows, axis=0)
    return bool(np.median(row_lengths(rows - middle)) <= _SAME * row_lengths(middle[None])[0])


def _simpler(simple: Fitted, full: Fitted, found: Rows, truth: Rows) -> Fitted:
    """Return the fit with fewer constants, unless the other is several times nearer."""
    return full if SIMPLER * _distance(found, full, truth) < _distance(found, simple, truth) else simple


def _distance(found: Rows, fitted: Fitted, truth: Rows) -> float:
    return float(np.median(token_errors(found, fitted.predict(truth))))


def _factor(found: Rows, truth: Rows) -> float:
    """Return the median over tokens of each token's best factor."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.einsum("td,td->t", found, truth) / np.einsum("td,td->t", truth, truth)
    ratios = ratios[np.isfinite(ratios)]
    return float(np.median(ratios)) if ratios.size else float("nan")


def _usual(rows: Rows) -> np.ndarray:
    lengths = row_lengths(rows)
    return lengths <= _USUAL_LENGTH * np.median(lengths)


def _centred(rows: Rows) -> Rows:
    return rows - rows.mean(axis=1, keepdims=True)


def _to_length(rows: Rows, length: np.float32) -> Rows:
    lengths = row_lengths(rows)[:, None]
    return rows * (length / np.where(lengths == 0, np.float32(1), lengths))
