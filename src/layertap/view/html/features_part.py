"""The part of a page for features: at most half of its space, so that samples fit, too.

Lists of features come first, then the samples in which the drawn features are largest. If not all
features fit into a list, the most interesting ones go in. The page says what it left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.errors import UsageError
from layertap.reader.dataset import ActivationDataset
from layertap.view.html.featured import Featured
from layertap.view.html.features import pack_features
from layertap.view.html.tops import Piece, pack_tops

_LISTS = 0.6
"""The largest share of the part that lists take."""
_A_PLACE = 64
"""How many bytes it takes to say where one of a feature's largest values is."""
_NOWHERE = -1
Place = tuple[int, int, int, float]
"""The page element with the value, the token in it, the row of its figures, and the value."""


@dataclass(frozen=True)
class Shown:
    """What fitted on the page."""

    places: int
    of: int
    drawn: int
    features: int
    of_features: int

    @property
    def sentence(self) -> str:
        """The sentence about it for the terminal."""
        listed = f"{self.features} of {self.of_features}" if self.features < self.of_features else f"{self.features}"
        left = f" at {self.places} of their {self.of} largest places (--max_mb)" if self.places < self.of else ""
        return f"; {listed} features, {self.drawn} of them drawn in full{left}"


def write_features(
    write: Callable[[str, str], None], dataset: ActivationDataset, featured: Sequence[Featured], room: int
) -> tuple[Shown, list[dict[str, list[Place]]]]:
    """Call `write` with the name and the content of each element.

    Elements and places take at most `room` bytes. Returns where on the page each drawn feature is
    largest. Raises UsageError where not even the drawn features fit into a list.
    """
    places = [_places(own) for own in featured]
    count = sum(len(own) for of in places for own in of.values())
    left, listed = room - _A_PLACE * (count + sum(len(of) for of in places)), 0
    for number, own in enumerate(featured):
        packed, own_listed = _list(own, int(left * _LISTS / (len(featured) - number)))
        write(f"features-{number}", packed)
        left, listed = left - len(packed), listed + own_listed
    for number, (piece, packed) in enumerate(pack_tops(dataset, featured)):
        size = len(packed) + _A_PLACE
        if size > left:
            continue
        left -= size
        write(f"top-{number}", packed)
        _note(places, piece, number)
    shown = sum(place[0] != _NOWHERE for of in places for own in of.values() for place in own)
    drawn, every = sum(len(own.drawn) for own in featured), sum(len(own.table.active) for own in featured)
    return Shown(shown, count, drawn, listed, every), places


def _places(own: Featured) -> dict[str, list[Place]]:
    """Return the largest values of each drawn feature, not on the page yet."""
    return {
        str(feature): [
            (_NOWHERE, 0, 0, float(value))
            for place, value in zip(own.table.top_samples[feature], own.table.top_values[feature], strict=True)
            if place >= 0
        ]
        for feature in own.drawn
    }


def _note(places: list[dict[str, list[Place]]], piece: Piece, number: int) -> None:
    for spot in piece.spots:
        row = piece.wanted.index((spot.autoencoder, spot.feature))
        of = places[spot.autoencoder][str(spot.feature)]
        of[spot.rank] = (number, spot.token - piece.begin, row, of[spot.rank][3])


def _list(own: Featured, room: int) -> tuple[str, int]:
    """Pack as many features as fit, and return their count. Those that never fire come last."""
    idle = np.flatnonzero(own.table.active == 0).tolist()
    ordered = list(dict.fromkeys([*own.drawn, *own.order, *idle]))
    count = len(ordered)
    while True:
        packed = pack_features(own.name, own.table, own.strongest, ordered[:count])
        if len(packed) <= room:
            return packed, count
        if count <= max(1, len(own.drawn)):
            raise UsageError("--max_mb: not even the drawn features fit; give more, or fewer --features")
        count = max(len(own.drawn), 1, min(count - 1, int(count * room / len(packed) * 0.95)))
