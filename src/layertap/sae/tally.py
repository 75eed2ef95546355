"""The sums of a walk over features, step by step: whole numbers in int64, sums in float64.

The samples in which a feature is largest form a short list for each feature, largest first. A
sample may come in several steps, but has one place in a list. Of equal values the earlier sample
and the earlier token win, so the lists do not depend on where steps end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layertap.core.taps import Tap
from layertap.sae.answers import GROUPS, name_values
from layertap.sae.table import FeatureTable

TOP = 12
"""Samples kept for each feature."""
_LEAST, _MOST = -16, 16
EDGES = 2.0 ** np.arange(_LEAST, _MOST + 1)
"""Bounds of the histogram. Each bin ends at twice its start."""
_BINS = len(EDGES) - 1
_EXPONENT, _BIAS = 23, 127
LABELS = sum(len(group.values) for group in GROUPS)


class Place(NamedTuple):
    """The position of a walk: the number of shards done, and of steps done of the next shard."""

    shards: int
    steps: int


@dataclass(frozen=True)
class Piece:
    """The rows of a step that belong to one sample."""

    sample: int
    """The sample's place in the dataset."""
    begin: int
    """The first row of the step that belongs to it. `end` is the row after the last."""
    end: int


class Tally:
    """The sums of all features up to the position of a walk."""

    def __init__(self, features: int) -> None:
        self.place = Place(0, 0)
        self.tokens = 0
        self.samples = 0
        self.sums = np.zeros(features, np.float64)
        self.active = np.zeros((features, LABELS + 1), np.int64)
        """By label. The last column counts all tokens."""
        self.label_tokens = np.zeros(LABELS, np.int64)
        self.histogram = np.zeros((features, _BINS), np.int64)
        self.top_samples = np.full((features, TOP), -1, np.int64)
        self.top_tokens = np.full((features, TOP), -1, np.int64)
        self.top_values = np.zeros((features, TOP), np.float32)

    def add_counts(self, sums: np.ndarray, active: np.ndarray, answers: np.ndarray) -> None:
        """Add the counts of a step: float32 [features] and [labels + 1, features], and the answers
        of its tokens, int8 [groups, tokens].
        """
        self.tokens += answers.shape[1]
        self.sums += sums
        self.active += active.T.astype(np.int64)
        counts = [
            np.bincount(own[own >= 0], minlength=len(group.values)) for group, own in zip(GROUPS, answers, strict=True)
        ]
        self.label_tokens += np.concatenate(counts)

    def add_values(self, features: np.ndarray, pieces: Sequence[Piece], rows: np.ndarray) -> None:
        """Add the values of a step, float32 [tokens, features]. `rows` is the place of each token
        among its sample's activations.
        """
        self.histogram += _histogram(features)
        for piece in pieces:
            self._offer(features[piece.begin : piece.end], piece.sample, rows[piece.begin : piece.end])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it except the place and the two totals."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def table(self, tap: Tap) -> FeatureTable:
        """Return all of it as a table, without the groups of which no token had an answer."""
        tokens, active = name_values(self.label_tokens), name_values(self.active[:, :-1])
        groups = tuple(group for group in GROUPS if tokens[group.name].any())
        return FeatureTable(
            tap=tap,
            tokens=self.tokens,
            samples=self.samples,
            active=self.active[:, -1],
            sums=self.sums,
            edges=EDGES,
            histogram=self.histogram,
            groups=groups,
            label_tokens={group.name: tokens[group.name] for group in groups},
            label_active={group.name: active[group.name] for group in groups},
            top_samples=self.top_samples,
            top_tokens=self.top_tokens,
            top_values=self.top_values,
        )

    def _offer(self, features: np.ndarray, sample: int, rows: np.ndarray) -> None:
        """Put a sample into the lists of the features that are large enough in it."""
        largest = features.max(axis=0)
        chosen = np.flatnonzero(largest > self.top_values[:, -1])
        if not len(chosen):
            return
        tokens = rows[features[:, chosen].argmax(axis=0)]
        samples = np.column_stack([self.top_samples[chosen], np.full(len(chosen), sample)])
        tokens = np.column_stack([self.top_tokens[chosen], tokens])
        values = np.column_stack([self.top_values[chosen], largest[chosen]])
        _drop_smaller(samples, values, sample)
        order = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
        self.top_samples[chosen] = np.take_along_axis(samples, order, axis=1)
        self.top_tokens[chosen] = np.take_along_axis(tokens, order, axis=1)
        self.top_values[chosen] = np.take_along_axis(values, order, axis=1)


def _drop_smaller(samples: np.ndarray, values: np.ndarray, sample: int) -> None:
    """If a list already has the sample, move the smaller of its two values to the end."""
    listed = samples[:, :-1] == sample
    before = np.where(listed, values[:, :-1], -np.inf).max(axis=1)
    larger = values[:, -1] > before
    values[:, :-1][listed & larger[:, None]] = -np.inf
    values[:, -1][~larger] = -np.inf


def _histogram(features: np.ndarray) -> np.ndarray:
    """Return how many values each feature has in each bin, by the exponents of floats; int64
    [features, bins].
    """
    count = features.shape[1]
    places = np.flatnonzero(features)
    exponents = (features.ravel()[places].view(np.int32) >> _EXPONENT) - _BIAS
    bins = np.clip(exponents - _LEAST, 0, _BINS - 1)
    return np.bincount((places % count) * _BINS + bins, minlength=count * _BINS).reshape(count, _BINS)
