"""What a walk over a run finds of each feature: how often, how much, on what, and where most.

A table holds only numbers, about a hundred for each feature. So a table of a few thousand features
takes a few megabytes whatever the run's size. To show a grid or a text in the heat of a feature,
encode its sample again: `top` names the sample.

A lift is how many times more often than by chance a feature fires on a value of a label. Chance is
the value's share of the tokens that have the label, so a feature that fires only on cells has no
lift of a colour for that. Look at the count beside it: a lift of 30 in two tokens is no finding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from layertap.core.taps import Tap


@dataclass(frozen=True)
class LabelGroup:
    """A question that a token answers in one way, or not at all: which colour, which row."""

    name: str
    values: tuple[str, ...]
    """Its answers, in order. A token without an answer does not count."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """All features of one autoencoder over one run."""

    tap: Tap
    tokens: int
    """How many tokens were counted: those that are finite and not excluded."""
    samples: int
    active: Int64[np.ndarray, " features"]
    """At how many tokens each feature fires."""
    sums: Float64[np.ndarray, " features"]
    """The sum of each feature over all tokens."""
    edges: Float64[np.ndarray, " bins_and_end"]
    """Bounds of the histogram, rising; values below or above count in the first and last bin."""
    histogram: Int64[np.ndarray, "features bins"]
    """At how many tokens each feature is that large; rows sum to `active`."""
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
        """Return the share of tokens at which each feature fires."""
        return self.active / max(self.tokens, 1)

    @property
    def means(self) -> Float64[np.ndarray, " features"]:
        """Return the mean of each feature where it fires; 0 if it never does."""
        return self.sums / np.maximum(self.active, 1)

    @property
    def largest(self) -> Float32[np.ndarray, " features"]:
        """Return the largest value of each feature; 0 if it never fires."""
        return self.top_values[:, 0]

    def lifts(self, group: LabelGroup) -> Float64[np.ndarray, "features values"]:
        """Return the lift of each value of a group; NaN if the feature or value never occurs."""
        fired, tokens = self.label_active[group.name].astype(float), self.label_tokens[group.name].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (fired / fired.sum(axis=1, keepdims=True)) / (tokens / tokens.sum())

    def lifts_of(self, feature: int) -> Iterator[tuple[LabelGroup, int, float, int]]:
        """Yield for one feature: group, value of it, lift, and number of tokens where it fires."""
        for group in self.groups:
            fired, lifts = self.label_active[group.name][feature], self.lifts(group)[feature]
            values = np.flatnonzero(fired).tolist()
            yield from ((group, value, float(lifts[value]), int(fired[value])) for value in values)
