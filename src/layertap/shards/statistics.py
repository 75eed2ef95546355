"""Statistics of the activations at one tap. The statistics of parts merge into those of the whole.

Each part has a count, the mean of each channel, and M2, the sum of squared deviations from that
mean. Two parts are merged by the formulas of Chan, Golub and LeVeque ("Updating formulae and a
pairwise algorithm for computing sample variances", 1979). They never subtract two large numbers of
similar size. So they are accurate for channels whose mean is ten thousand times their standard
deviation, which these models have. Everything is in float64. The merge is commutative, and
associative up to rounding, so shards and workers may be merged in any order.

All tokens count, with sinks and special tokens, except those whose activation has a NaN or an
infinity: one such token would turn every number into a NaN or an infinity. The values are the
stored ones, after rounding. `measure` takes one pass, about 2 ns a value on one core, by blocks
that fit into its cache. Encoding uses the faster function of measuring.py. Where storing only
widens values, they are measured before that: this gives the same numbers without a conversion.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float64

from layertap.core.sample import Activation

Norms = Float64[np.ndarray, " tokens"]
Channels = Float64[np.ndarray, " width"]

_BLOCK = 128  # tokens


@dataclass(frozen=True, eq=False)
class TapStatistics:
    """Statistics of all finite tokens at one tap. A norm is Euclidean, over a token's channels."""

    count: int
    mean: Channels
    m2: Channels
    """For each channel, the sum of squared deviations from its mean."""
    mean_norm: float
    mean_square_norm: float
    """E||x||^2, by which SAE trainers scale."""
    max_norm: float
    max_sample_idx: int
    max_position: int
    """Where the largest norm is. Of several, it is the one with the smallest sample_idx and
    position."""

    @property
    def std(self) -> Channels:
        """For each channel, the standard deviation of the population (the divisor is `count`)."""
        return np.sqrt(self.m2 / max(self.count, 1))

    @property
    def mean_over_std(self) -> float:
        """The norm of the mean, divided by the root of the summed variances.

        Infinity where nothing varies, and 0 where everything is zero.
        """
        mean, deviation = float(np.linalg.norm(self.mean)), float(np.linalg.norm(self.std))
        return mean / deviation if deviation else np.inf if mean else 0.0

    @np.errstate(invalid="ignore", over="ignore")  # earlier versions may have stored NaN
    def merge(self, other: "TapStatistics") -> "TapStatistics":
        """Return the statistics of the tokens of both."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        delta = other.mean - self.mean
        top = max(self, other, key=TapStatistics._rank)
        return TapStatistics(
            count=count,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta * delta * (self.count * share),
            mean_norm=self.mean_norm + (other.mean_norm - self.mean_norm) * share,
            mean_square_norm=self.mean_square_norm + (other.mean_square_norm - self.mean_square_norm) * share,
            max_norm=top.max_norm,
            max_sample_idx=top.max_sample_idx,
            max_position=top.max_position,
        )

    def _rank(self) -> tuple[bool, float, int, int]:
        return self.count > 0, self.max_norm, -self.max_sample_idx, -self.max_position


def no_statistics(width: int) -> TapStatistics:
    """Return the statistics of no token at all, with which a merge begins."""
    return TapStatistics(0, np.zeros(width), np.zeros(width), 0.0, 0.0, 0.0, -1, -1)


def merge_all(parts: Iterable[TapStatistics], width: int) -> TapStatistics:
    """Return the statistics of the tokens of all parts."""
    return reduce(TapStatistics.merge, parts, no_statistics(width))


def measure(activation: Activation, sample_idx: int) -> tuple[TapStatistics, Norms]:
    """Return the statistics of a sample, and the norm of each of its tokens."""
    with np.errstate(invalid="ignore", over="ignore"):
        blocks = list(_measure_blocks(activation, sample_idx))
        statistics = merge_all((part for part, _ in blocks), activation.shape[1])
    return statistics, np.concatenate([np.empty(0), *(norms for _, norms in blocks)])


def _measure_blocks(activation: Activation, sample_idx: int) -> Iterator[tuple[TapStatistics, Norms]]:
    for begin in range(0, len(activation), _BLOCK):
        block = activation[begin : begin + _BLOCK].astype(np.float64)
        squares = np.einsum("th,th->t", block, block)
        tokens = np.arange(begin, begin + len(block))
        finite = np.isfinite(squares)
        if finite.all():
            yield _of_finite(block, squares, sample_idx, tokens), np.sqrt(squares)
        else:
            yield _of_finite(block[finite], squares[finite], sample_idx, tokens[finite]), np.sqrt(squares)


def _of_finite(block: np.ndarray, squares: np.ndarray, sample_idx: int, tokens: np.ndarray) -> TapStatistics:
    """Return the statistics of these tokens of a sample. This overwrites `block`."""
    if not len(tokens):
        return no_statistics(block.shape[1])
    norms = np.sqrt(squares)
    mean = block.mean(axis=0)
    block -= mean
    top = int(np.argmax(norms))
    return TapStatistics(
        count=len(block),
        mean=mean,
        m2=np.einsum("th,th->h", block, block),
        mean_norm=float(norms.mean()),
        mean_square_norm=float(squares.mean()),
        max_norm=float(norms[top]),
        max_sample_idx=sample_idx,
        max_position=int(tokens[top]),
    )
