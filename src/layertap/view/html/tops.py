"""Where the drawn features are largest, as the page shows it: samples with the heat of each.

A table only says where that is, so these samples are encoded again, for the features that want
them. One with grids is taken whole, since its other grids tell as much; of a text the tokens around
the largest. What a page has no room for is left out, and counted.
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
    """A place where a feature is among its largest: which autoencoder, feature and place of its
    list, and the token.
    """

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
        """The autoencoders and features whose heat it holds, in the order of its figures."""
        return list(dict.fromkeys((spot.autoencoder, spot.feature) for spot in self.spots))


def pack_tops(dataset: ActivationDataset, featured: Sequence[Featured]) -> Iterator[tuple[Piece, str]]:
    """Each piece with what the page holds of it; the largest of all features come first."""
    for place, spots in _spots(featured).items():
        sample = dataset[place]
        for piece in _pieces(sample, spots):
            yield piece, pack_sample(sample, _heats(sample, piece, featured), (), piece.begin)


def _spots(featured: Sequence[Featured]) -> dict[int, list[Spot]]:
    """By sample; first those with the largest of a feature, in the order of the samples."""
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
