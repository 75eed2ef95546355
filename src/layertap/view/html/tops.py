"""Where the drawn features are largest: samples with the feature's value at each token.

A table only says where that is. So these samples are encoded again, for the features that are
largest there. A sample with grids is shown whole, because its other grids say as much; a text is
cut to the tokens around the largest value. What does not fit on the page is left out and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from layertap.errors import UsageError
from layertap.reader.dataset import ActivationDataset
from layertap.reader.sample import Sample
from layertap.view.html.featured import Featured, encode_features
from layertap.view.html.figures import Figures
from layertap.view.html.payload import pack_sample

_MOST_WHOLE = 16_384
_BEFORE, _AFTER = 80, 40


@dataclass(frozen=True)
class Spot:
    """A place with one of a feature's largest values: its autoencoder, feature, rank and token."""

    autoencoder: int
    feature: int
    rank: int
    token: int


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a sample, and the spots that they show."""

    begin: int
    end: int
    spots: list[Spot] = field(default_factory=list)

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """The autoencoders and features whose values it holds, in the order of its figures."""
        return list(dict.fromkeys((spot.autoencoder, spot.feature) for spot in self.spots))


def pack_tops(dataset: ActivationDataset, featured: Sequence[Featured]) -> Iterator[tuple[Piece, str]]:
    """Yield each piece and its packed sample. The largest value of every feature comes first."""
    for place, spots in _spots(featured).items():
        sample = dataset[place]
        for piece in _pieces(sample, spots):
            yield piece, pack_sample(sample, _heats(sample, piece, featured), (), piece.begin)


def _spots(featured: Sequence[Featured]) -> dict[int, list[Spot]]:
    """Group spots by sample. Samples with the largest value of a feature come first, in order."""
    ranked: dict[int, dict[int, list[Spot]]] = {}
    for number, own in enumerate(featured):
        for feature in own.drawn:
            for rank, place in enumerate(own.table.top_samples[feature].tolist()):
                if place >= 0:
                    spot = Spot(number, feature, rank, int(own.table.top_tokens[feature, rank]))
                    ranked.setdefault(rank, {}).setdefault(place, []).append(spot)
    found: dict[int, list[Spot]] = {}
    for rank in sorted(ranked):
        for place in sorted(ranked[rank]):
            found.setdefault(place, []).extend(ranked[rank][place])
    return found


def _pieces(sample: Sample, spots: Sequence[Spot]) -> list[Piece]:
    length = len(sample)
    whole = _has_grids(sample) and length <= _MOST_WHOLE
    found: dict[tuple[int, int], Piece] = {}
    for spot in spots:
        begin, end = (0, length) if whole else (max(0, spot.token - _BEFORE), min(length, spot.token + _AFTER))
        found.setdefault((begin, end), Piece(begin, end)).spots.append(spot)
    return list(found.values())


def _has_grids(sample: Sample) -> bool:
    try:
        return bool((sample.column("cells") > 0).any())
    except UsageError:  # the run stored no labels
        return False


def _heats(sample: Sample, piece: Piece, featured: Sequence[Featured]) -> Figures:
    rows = []
    for number, own in enumerate(featured):
        features = [feature for of, feature in piece.wanted if of == number]
        if features:
            activation = sample.activation(*own.tap)[piece.begin : piece.end]
            found = encode_features(own.autoencoder, np.asarray(activation, np.float32), features)
            rows += [(piece.wanted.index((number, feature)), row) for feature, row in zip(features, found, strict=True)]
    ordered = [row for _, row in sorted(rows, key=lambda it: it[0])]
    return Figures(np.empty((0, 0, piece.end - piece.begin)), np.array(ordered))
