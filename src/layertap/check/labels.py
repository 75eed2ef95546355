"""Check that labels are possible: values in range, and columns that fit each other.

This needs only the columns. For some samples, relabel.py also checks that the labels are right for
the text, by making the prompt again.
"""

from collections.abc import Iterator

import numpy as np

from layertap.core.columns import NO_LABELS, NONE, ROLES, SIDES, TEST, Columns

_MOST_SIDE = 30
_MOST_DIGITS = 18


def find_wrong_labels(columns: Columns) -> Iterator[tuple[int, str]]:
    """Yield each impossible combination with its first row; nothing if there are no labels."""
    if not NO_LABELS.keys() <= columns.keys():
        return
    for finding, wrong in _impossible(columns):
        rows = np.flatnonzero(wrong)
        if rows.size:
            values = ", ".join(f"{name} {columns[name][rows[0]]}" for name in NO_LABELS)
            yield int(rows[0]), f"{finding} ({values}); {rows.size} are wrong"


def _impossible(columns: Columns) -> Iterator[tuple[str, np.ndarray]]:
    example, side, row, col = (columns[name].astype(np.int64) for name in ("example", "side", "row", "col"))
    colours, cells = columns["colours"], columns["cells"].astype(np.int64)
    yield "has no known role", columns["role"] >= len(ROLES)
    yield "has no known side", side >= len(SIDES)
    yield "belongs to no possible example", example < TEST
    yield "has an example without a side, or a side without an example", (example == NONE) != (side == 0)
    yield "has cells outside of grids", (cells > 0) & (side == 0)
    for name, place in (("row", row), ("col", col)):
        yield f"has cells without a {name}, or a {name} without cells", (place >= 0) != (cells > 0)
        yield f"has an impossible {name}", (place < NONE) | (place >= _MOST_SIDE)
    yield "has cells without colours, or colours without cells", (colours >= 0) != (cells > 0)
    yield "has more colours than cells", colours >= 10 ** np.minimum(cells, _MOST_DIGITS)
    yield "has impossible colours", colours < NONE
