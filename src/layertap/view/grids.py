"""Grids for a terminal: each cell in its colour, with the value of its token as shade.

A cell is two characters wide, so it looks square. Its background is the ARC colour, as the terminal
can show it: by 24 bits, by one of 256 colours, or not at all, and then the colour is a digit. The
character in it is the shade of the value: a fifth of the cells of the sample have each of five.
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
"""The same among the 256."""
_DARK_INK = frozenset({3, 4, 5, 7, 8})
"""Colours on which black is easier to see than white."""
_SHADES = " \u2591\u2592\u2593\u2588"


def colours_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Colours:
    """How many colours a stream can show, as far as its terminal says (https://no-color.org)."""
    if not stream.isatty() or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return "none"
    return "24-bit" if environment.get("COLORTERM") in ("truecolor", "24bit") else "256"


def draw_grids(labels: Columns, norms: Norms, colours: Colours) -> Iterator[str]:
    """The grids of a sample's tokens, an example a line of grids; nothing where it has none."""
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
    """The shade of each token that is of cells."""
    finite = norms[tokens][np.isfinite(norms[tokens])]
    bounds = np.quantile(finite, np.linspace(0, 1, len(_SHADES) + 1)[1:-1]) if len(finite) else np.zeros(4)
    places = np.searchsorted(bounds, norms[tokens], side="right")
    return {int(token): _SHADES[place] for token, place in zip(tokens.tolist(), places.tolist(), strict=True)}


def _draw(whole: tuple[Grid, Grid] | None, shades: Mapping[int, str], colours: Colours) -> list[str]:
    if whole is None:
        return ["(not all of its cells are here)"]
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
    """Blocks of lines beside each other; the first line of each is its name."""
    widths = [max(map(_width, block)) for block in blocks]
    for lines in zip_longest(*blocks, fillvalue=""):
        padded = (line + " " * (width - _width(line)) for line, width in zip(lines, widths, strict=True))
        yield "  " + "   ".join(padded).rstrip(" ")


def _width(line: str) -> int:
    """How many characters of a line are seen."""
    return len(line) if "\x1b" not in line else sum(len(part.partition("m")[2]) for part in line.split("\x1b["))
