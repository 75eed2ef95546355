"""What each token is, as answers to a few questions, which we compare features with.

    role          who says it
    grid          whether it is a cell of an input or of an output
    colour        the colour of its cells, if they have one colour
    edge of grid  whether its cells are a corner of their grid, at its edge, or inside
    object        background (colour 0), the edge of an object, or inside one: all four neighbours
                  of the cell have its colour. A cell at the edge of the grid is never inside
    row, column   where its first cell is

The answers follow from the labels that a run stored. A token has no answer if it is not a cell, or
if its cells answer differently. It has no answer to the two questions about a whole grid if cells
of the grid are missing. If a run stored no labels, no token has answers. A token of plain text
answers only its role.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int8

from layertap.core.cells import read_cells
from layertap.core.columns import NO_LABELS, ROLES, SIDES, Columns
from layertap.sae.table import LabelGroup

COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "sky", "maroon")
"""ARC's ten colours, by number."""
_LONGEST = 30
_PLACES = tuple(map(str, range(_LONGEST)))

GROUPS = (
    LabelGroup("role", ROLES),
    LabelGroup("grid", SIDES[1:]),
    LabelGroup("colour", COLOURS),
    LabelGroup("edge of grid", ("corner", "edge", "inside")),
    LabelGroup("object", ("background", "edge of an object", "inside an object")),
    LabelGroup("row", _PLACES),
    LabelGroup("column", _PLACES),
)
_NONE = -1

Answers = Int8[np.ndarray, "groups tokens"]


def no_answers(tokens: int) -> Answers:
    """Return the answers of tokens without labels."""
    return np.full((len(GROUPS), tokens), _NONE, np.int8)


def answer(columns: Columns) -> Answers:
    """Return the answers of the tokens of one sample, as numbers among the values of their group;
    -1 means no answer.
    """
    found = no_answers(len(columns["role"]))
    role, side, colour, edge, object_, row, column = found
    role[:] = np.where(columns["role"] < len(ROLES), columns["role"], _NONE)
    cells = columns["cells"] > 0
    side[:] = np.where(cells & np.isin(columns["side"], (1, 2)), columns["side"].astype(np.int8) - 1, _NONE)
    row[:], column[:] = _places(columns["row"], cells), _places(columns["col"], cells)
    colour[:] = _colours(columns, cells)
    for tokens, edges, objects in _of_grids(columns):
        edge[tokens], object_[tokens] = edges, objects
    return found


def label_columns() -> tuple[str, ...]:
    """Return the columns that `answer` needs."""
    return tuple(NO_LABELS)


def _places(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return np.where(cells & (values >= 0) & (values < _LONGEST), values, _NONE)


def _colours(columns: Columns, cells: np.ndarray) -> np.ndarray:
    """Return the last digit of the cells' colours if all digits are the same."""
    digit = columns["colours"] % 10
    ones = (10 ** np.minimum(columns["cells"], 18).astype(np.int64) - 1) // 9
    return np.where(cells & (columns["colours"] == digit * ones), digit, _NONE)


def _of_grids(columns: Columns) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, for each whole grid, its tokens and their answers to the two questions about it."""
    for (example, side), found in read_cells(columns).items():
        if found is None:
            continue
        own = (columns["cells"] > 0) & (columns["example"] == example) & (columns["side"] == side)
        tokens, colours = np.flatnonzero(own), np.array(found[0])
        first = columns["row"][tokens].astype(np.int64) * colours.shape[1] + columns["col"][tokens]
        counts = columns["cells"][tokens]
        yield (
            tokens,
            _common(_edges(colours).ravel(), first, counts),
            _common(_objects(colours).ravel(), first, counts),
        )


def _edges(colours: np.ndarray) -> np.ndarray:
    """Return whether each cell is a corner (0), at the edge (1) or inside (2)."""
    height, width = colours.shape
    rows, cols = np.indices(colours.shape)
    at_end = np.isin(rows, (0, height - 1)).astype(np.int8) + np.isin(cols, (0, width - 1))
    return 2 - at_end


def _objects(colours: np.ndarray) -> np.ndarray:
    """Return whether each cell is background (0), the edge of an object (1) or inside one (2)."""
    around = np.pad(colours, 1, constant_values=_NONE)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    inside = np.all([neighbour == colours for neighbour in neighbours], axis=0)
    return np.where(colours == 0, 0, np.where(inside, 2, 1)).astype(np.int8)


def _common(values: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the value that the `counts` cells from `first` on share; -1 if they differ."""
    found = values[first]
    for place in range(1, int(counts.max(initial=1))):
        more = counts > place
        other = values[np.minimum(first + place, len(values) - 1)]
        found = np.where(more & (other != found), _NONE, found)
    return found


def name_values(counts: np.ndarray) -> Mapping[str, np.ndarray]:
    """Split the counts of all values, side by side in the last axis, into those of each group."""
    ends = np.cumsum([len(group.values) for group in GROUPS])
    parts = np.split(counts, ends[:-1], axis=-1)
    return {group.name: part for group, part in zip(GROUPS, parts, strict=True)}
