"""Rebuild the grids of an ARC prompt from the label columns of its tokens.  A token may have
several cells, in reading order, and a cell may have several tokens. No column stores the width of a
grid. So we choose a width for which the cells fill a rectangle, and if possible one for which no
token continues in the next row.
"""

from collections.abc import Sequence

import numpy as np

from layertap.core.columns import Columns
from layertap.core.records import Grid

_MOST_SIDE = 30
_Token = tuple[int, int, list[tuple[int, int]]]
"""The row and column of a token's first cell, and the colour and token of each of its cells."""


def read_grids(columns: Columns) -> dict[tuple[int, int], Grid | None]:
    """Return each grid as the prompt shows it, by `example` and `side` (core/columns.py).

    A grid is None if cells are missing: the prompt was cut, or not every token was stored.
    """
    return {key: None if found is None else found[0] for key, found in read_cells(columns).items()}


def read_cells(columns: Columns) -> dict[tuple[int, int], tuple[Grid, Grid] | None]:
    """Return the same, with a second grid: for each cell the index of its token in the columns."""
    found: dict[tuple[int, int], list[_Token]] = {}
    names = ("example", "side", "row", "col", "colours", "cells")
    tokens = np.flatnonzero(columns["cells"] > 0)
    rows = zip(*(columns[name][tokens].tolist() for name in names), strict=True)
    for token, (example, side, row, col, colours, cells) in zip(tokens.tolist(), rows, strict=True):
        digits = [(colours // 10**place % 10, token) for place in range(cells)]
        found.setdefault((example, side), []).append((row, col, digits))
    return {key: _grid(cells) for key, cells in found.items()}


def _grid(cells: Sequence[_Token]) -> tuple[Grid, Grid] | None:
    least = 1 + max(col for _, col, _ in cells)
    usual = max(col + len(digits) for _, col, digits in cells)  # if no token continues in the next row
    widths = [*range(usual, _MOST_SIDE + 1), *range(least, min(usual, _MOST_SIDE + 1))]
    return next(filter(None, (_grid_of_width(cells, width) for width in widths)), None)


def _grid_of_width(cells: Sequence[_Token], width: int) -> tuple[Grid, Grid] | None:
    placed = {row * width + col + place: cell for row, col, digits in cells for place, cell in enumerate(digits)}
    height, rest = divmod(len(placed), width)
    if rest or max(placed) != len(placed) - 1:
        return None
    colours, tokens = (
        tuple(tuple(placed[row * width + col][which] for col in range(width)) for row in range(height))
        for which in (0, 1)
    )
    return colours, tokens
