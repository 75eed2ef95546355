"""What a walk over a run finds of each feature: how often, how much, on what, and where most.

A table has numbers only, some hundred a feature, so one of a few thousand features takes a few
megabytes whatever the run's size. To show a grid or a text in the heat of a feature, encode its
sample again: `top` says which.

A lift is how many times more often than by chance a feature fires on a value of a label. Chance is
the value's share of the tokens that have the label, so to fire on cells alone is no lift of a
colour. It needs its count beside it: a lift of 30 in two tokens is no finding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from layertap.core.taps import Tap


@dataclass(frozen=True)
class LabelGroup:
    """A question that each token answers in one way, or not at all: which colour, which row."""

    name: str
    values: tuple[str, ...]
    """Its answers, in order; a token without an answer counts in none."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """All features of one autoencoder over one run."""

    tap: Tap
    tokens: int
    """How many tokens were counted: those whose activation is finite and that are not left out."""
    samples: int
    active: Int64[np.ndarray, " features"]
    """At how many tokens each fires."""
    sums: Float64[np.ndarray, " features"]
    """The sum of each over all tokens."""
    edges: Float64[np.ndarray, " bins_and_end"]
    """Bounds of the histogram, rising; values below or above count in the first and last bin."""
    histogram: Int64[np.ndarray, "features bins"]
    """At how many tokens each is that large; rows sum to `active`."""
    groups: tuple[LabelGroup, ...]
    label_tokens: Mapping[str, Int64[np.ndarray, " values"]]
    """By group: how many counted tokens have each value."""
    label_active: Mapping[str, Int64[np.ndarray, "features values"]]
    """By group: at how many of those each feature fires."""
    top_samples: Int64[np.ndarray, "features places"]
    """Where it is largest, each place another sample: its place in the dataset, and -1 where there
    are fewer; the largest first."""
    top_tokens: Int64[np.ndarray, "features places"]
    """The row of the sample's activations where it is largest."""
    top_values: Float32[np.ndarray, "features places"]

    @property
    def density(self) -> Float64[np.ndarray, " features"]:
        """The share of tokens at which each fires."""
        return self.active / max(self.tokens, 1)

    @property
    def means(self) -> Float64[np.ndarray, " features"]:
        """The mean of each where it fires; 0 where it never does."""
        return self.sums / np.maximum(self.active, 1)

    @property
    def largest(self) -> Float32[np.ndarray, " features"]:
        """The largest value of each; 0 where it never fires."""
        return self.top_values[:, 0]

    def lifts(self, group: LabelGroup) -> Float64[np.ndarray, "features values"]:
        """The lift of each value of a group; NaN where the feature or the value never occurs."""
        fired, tokens = self.label_active[group.name].astype(float), self.label_tokens[group.name].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (fired / fired.sum(axis=1, keepdims=True)) / (tokens / tokens.sum())

    def lifts_of(self, feature: int) -> Iterator[tuple[LabelGroup, int, float, int]]:
        """Of one feature: a group, a value of it, its lift, and at how many tokens it fires."""
        for group in self.groups:
            fired, lifts = self.label_active[group.name][feature], self.lifts(group)[feature]
            values = np.flatnonzero(fired).tolist()
            yield from ((group, value, float(lifts[value]), int(fired[value])) for value in values)
