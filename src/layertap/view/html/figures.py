"""The values that a page shows for each token at each tap.

    norm       the Euclidean norm, as stored
    cosine     with the tap's mean over the run: near 1 where a token has little of its own
    deviation  the distance from that mean in standard deviations: |x - mean| over the root of the
               variance of all channels together
    step       the norm of the difference to the layer before it at the same site, of those shown
    channel c  the value of one channel
    feature f  the value of a feature of a sparse autoencoder, at the tap where that was trained

A feature has one row of values, at its own tap, not one for each tap. With 40 features at 24 layers
those rows would be four fifths of a sample's numbers, and all but 40 of 1,056 rows would be empty.

The mean and the variance are those of the whole run, which are stored beside its shards. So each
sample is read once and alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.core.taps import Tap
from layertap.reader.sample import Sample
from layertap.shards.statistics import TapStatistics
from layertap.view.html.featured import Featured, encode_features

ALWAYS = ("norm", "cosine", "deviation", "step")


@dataclass(frozen=True, eq=False)
class Figures:
    """Some values of each token at each tap, and features of each token at one tap each."""

    values: np.ndarray
    """float64 [names, taps, tokens]; names are those of `Asked.everywhere`."""
    features: np.ndarray
    """float64 [features, tokens]"""
    feature_taps: tuple[int, ...] = ()
    """For each feature, the place of its tap among the taps."""

    @property
    def tokens(self) -> int:
        """How many tokens have values here."""
        return self.features.shape[1]


@dataclass(frozen=True, eq=False)
class Asked:
    """The values of each token that you asked for, in addition to those that it always has."""

    channels: tuple[int, ...] = ()
    featured: tuple[Featured, ...] = ()

    @property
    def everywhere(self) -> tuple[str, ...]:
        """The names of the values of each token at each tap, in order."""
        return (*ALWAYS, *(f"channel {channel}" for channel in self.channels))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all values of each token, in order. Features, at one tap each, come last."""
        return (*self.everywhere, *(name for name, _, _ in self.features))

    @property
    def features(self) -> tuple[tuple[str, int, int], ...]:
        """Name, autoencoder and number of each feature, in the order of `names`."""
        several = len(self.featured) > 1
        return tuple(
            (f"feature {feature} of {own.name}" if several else f"feature {feature}", number, feature)
            for number, own in enumerate(self.featured)
            for feature in own.drawn
        )


def measure_tokens(
    sample: Sample, taps: Sequence[Tap], statistics: Mapping[Tap, TapStatistics], asked: Asked, most: int
) -> Figures:
    """Compute the values of the first `most` tokens of a sample."""
    before: dict[str, np.ndarray] = {}
    found = []
    features: dict[int, np.ndarray] = {}
    for tap in taps:
        activation = np.asarray(sample.activation(*tap)[:most], np.float64)
        norms = sample.norms(*tap)[:most].astype(np.float64)
        found.append([*_of_tap(activation, norms, statistics.get(tap), before.get(tap.site), asked.channels)])
        for number, own in enumerate(asked.featured):
            if own.tap == tap:
                features[number] = encode_features(own.autoencoder, activation, own.drawn)
        before[tap.site] = activation
    values = np.array(found).transpose(1, 0, 2)
    none = np.empty((0, values.shape[2]))
    placed = tuple(taps.index(own.tap) for own in asked.featured for _ in own.drawn)
    return Figures(values, np.concatenate([none, *(features[number] for number in sorted(features))]), placed)


def _of_tap(
    activation: np.ndarray,
    norms: np.ndarray,
    statistics: TapStatistics | None,
    before: np.ndarray | None,
    channels: Sequence[int],
) -> Iterator[np.ndarray]:
    unknown = np.full(len(norms), np.nan)
    yield norms
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if statistics is None or not statistics.count:
            yield from (unknown, unknown)
        else:
            yield activation @ statistics.mean / (norms * np.linalg.norm(statistics.mean))
            spread = np.sqrt(statistics.m2.sum() / statistics.count)
            yield np.linalg.norm(activation - statistics.mean, axis=1) / spread
        comparable = before is not None and before.shape == activation.shape
        yield np.linalg.norm(activation - before, axis=1) if before is not None and comparable else unknown
    for channel in channels:
        yield activation[:, channel] if channel < activation.shape[1] else unknown
