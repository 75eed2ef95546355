"""Grids for a terminal: each cell in its colour, with the value of its token as a shade.

A cell is two characters wide, so it looks square. Its background is the ARC colour, in 24 bits or
as one of 256 colours. In a terminal without colours, a digit shows the colour. The character in the
cell is the shade of the value. There are five shades, and each has a fifth of the sample's cells.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Literal, TextIO

import numpy as np

from layertap.core.cells import read_cells
from layertap.core.columns import SIDES, TEST, Columns, Norms
from layertap.core.records import Grid

Colours = Literal["none", "256", "24-bit"]

_ARC = ("000000", "0074D9", "FF4136", "2ECC40", "FFDC00", "AAAAAA", "F012BE", "FF851B", "7FDBFF", "870C25")
_NEAR = (16, 32, 203, 41, 220, 248, 199, 208, 117, 88)
"""The nearest of the 256 colours."""
_DARK_INK = frozenset({3, 4, 5, 7, 8})
"""Colours on which black is easier to read than white."""
_SHADES = " \u2591\u2592\u2593\u2588"


def colours_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Colours:
    """Return how many colours a stream can show, from what its terminal says
    (https://no-color.org).
    """
    if not stream.isatty() or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return "none"
    return "24-bit" if environment.get("COLORTERM") in ("truecolor", "24bit") else "256"


def draw_grids(labels: Columns, norms: Norms, colours: Colours) -> Iterator[str]:
    """Yield the lines of a sample's grids, with those of an example side by side, if it has any."""
    found = read_cells(labels)
    shades = _shades(norms, np.flatnonzero(labels["cells"] > 0))
    pairs = dict.fromkeys(example for example, _ in found)
    for example in pairs:
        name = "test" if example == TEST else f"example {example + 1}"
        sides = [(SIDES[side], found[example, side]) for side in (1, 2) if (example, side) in found]
        drawn = [[side, *_draw(whole, shades, colours)] for side, whole in sides]
        yield f"{name}"
        yield from _side_by_side(drawn)


def _shades(norms: Norms, tokens: np.ndarray) -> dict[int, str]:
    """Return the shade of each token that belongs to a cell."""
    finite = norms[tokens][np.isfinite(norms[tokens])]
    bounds = np.quantile(finite, np.linspace(0, 1, len(_SHADES) + 1)[1:-1]) if len(finite) else np.zeros(4)
    places = np.searchsorted(bounds, norms[tokens], side="right")
    return {int(token): _SHADES[place] for token, place in zip(tokens.tolist(), places.tolist(), strict=True)}


def _draw(whole: tuple[Grid, Grid] | None, shades: Mapping[int, str], colours: Colours) -> list[str]:
    if whole is None:
        return ["(some of its cells are missing)"]
    return [
        "".join(_cell(color, shades[token], colours) for color, token in zip(*rows, strict=True))
        + ("" if colours == "none" else "\x1b[0m")
        for rows in zip(*whole, strict=True)
    ]


def _cell(color: int, shade: str, colours: Colours) -> str:
    if colours == "none":
        return f"{color}{shade}"
    ink = "30" if color in _DARK_INK else "97"
    if colours == "256":
        return f"\x1b[{ink};48;5;{_NEAR[color]}m {shade}"
    red, green, blue = (int(_ARC[color][at : at + 2], 16) for at in (0, 2, 4))
    return f"\x1b[{ink};48;2;{red};{green};{blue}m {shade}"


def _side_by_side(blocks: Sequence[Sequence[str]]) -> Iterator[str]:
    """Put blocks of lines side by side. The first line of each is its name."""
    widths = [max(map(_width, block)) for block in blocks]
    for lines in zip_longest(*blocks, fillvalue=""):
        padded = (line + " " * (width - _width(line)) for line, width in zip(lines, widths, strict=True))
        yield "  " + "   ".join(padded).rstrip(" ")


def _width(line: str) -> int:
    """Return how many characters of a line are visible."""
    return len(line) if "\x1b" not in line else sum(len(part.partition("m")[2]) for part in line.split("\x1b["))
