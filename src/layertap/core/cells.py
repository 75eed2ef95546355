"""The grids that the labels of an ARC prompt's tokens tell, read from the columns alone.

A token may have several cells, which follow each other in rows, and rows in the grid; and a cell
may have several tokens. How wide a grid is, no column says. It is a width for which the cells fill
a rectangle, and if possible one for which no token goes on in the next row.
"""

from collections.abc import Sequence

import numpy as np

from layertap.core.columns import Columns
from layertap.core.records import Grid

_MOST_SIDE = 30
_Cells = Sequence[tuple[int, int, list[int]]]
"""For each token its first cell's row and column, and the colours of its cells."""


def read_grids(columns: Columns) -> dict[tuple[int, int], Grid | None]:
    """By `example` and `side` (core/columns.py), the grid as the prompt shows it.

    None where cells are missing, as where a prompt was cut or not every token was stored.
    """
    found: dict[tuple[int, int], list[tuple[int, int, list[int]]]] = {}
    names = ("example", "side", "row", "col", "colours", "cells")
    tokens = np.flatnonzero(columns["cells"] > 0)
    for example, side, row, col, colours, cells in zip(
        *(columns[name][tokens].tolist() for name in names), strict=True
    ):
        digits = [colours // 10**place % 10 for place in range(cells)]
        found.setdefault((example, side), []).append((row, col, digits))
    return {key: _grid(cells) for key, cells in found.items()}


def _grid(cells: _Cells) -> Grid | None:
    least = 1 + max(col for _, col, _ in cells)
    usual = max(col + len(digits) for _, col, digits in cells)  # where no token goes on in the next row
    widths = [*range(usual, _MOST_SIDE + 1), *range(least, min(usual, _MOST_SIDE + 1))]
    return next(filter(None, (_grid_of_width(cells, width) for width in widths)), None)


def _grid_of_width(cells: _Cells, width: int) -> Grid | None:
    colours = {row * width + col + place: digit for row, col, digits in cells for place, digit in enumerate(digits)}
    height, rest = divmod(len(colours), width)
    if rest or max(colours) != len(colours) - 1:
        return None
    return tuple(tuple(colours[row * width + col] for col in range(width)) for row in range(height))
