"""The fields of marks, and how the marks of characters become the labels of tokens.

A mark (marked.py) has these fields, all 0 if nothing is known:

    role         3 bits   who says it: an index into ROLES
    generated    1 bit    between the template's `{% generation %}` tags
    side         2 bits   which grid of a pair: an index into SIDES
    example     16 bits   which pair: its number + 3, so that TEST is 1 and the first pair is 3
    row, col     5 bits each
    colour       4 bits   the colour + 1, so that 0 means no cell

The tokenizer's offsets say which characters a token has. The token takes its role and grid from its
first character that has one. So a token with a template's line break followed by the user's words
belongs to the user. It covers every cell of which it has a character. A tokenizer that merges
digits makes tokens with several cells. One that splits a symbol into bytes makes several tokens for
one cell, and each has that cell.

If a template marks what an assistant generates, as for training, these marks decide the assistant's
tokens instead of the message's content. They are the tokens of
`apply_chat_template(return_assistant_tokens_mask=True)`.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int64

from layertap.core.columns import COLUMNS, NONE, ROLES, SIDES, TEST
from layertap.core.records import Grid
from layertap.prompts.marked import Marks

_ROLE, _GENERATED, _SIDE, _EXAMPLE, _ROW, _COL, _COLOUR = 0, 3, 4, 6, 22, 27, 32
_BITS = {_ROLE: 3, _SIDE: 2, _EXAMPLE: 16, _ROW: 5, _COL: 5, _COLOUR: 4}
_EXAMPLE_FROM = 3
_MOST_COLOURS = 18  # decimal digits of an int64
GENERATED = 1 << _GENERATED
ROLE_MASK = 0b1111
"""The bits that hold the role."""


def role_bits(role: str) -> int:
    """Return the bits of a role."""
    return ROLES.index(role) << _ROLE


def grid_bits(example: int, side: str) -> int:
    """Return the bits of a grid: `example` is a train pair, from 0, or TEST; `side` is in SIDES."""
    return (example + _EXAMPLE_FROM) << _EXAMPLE | SIDES.index(side) << _SIDE


def cell_marks(grid: Grid, characters: int = 1, between: int = 0) -> Marks:
    """Return the marks of a grid's text: `characters` per cell, `between` cells, and line
    breaks.
    """
    cells = np.array(grid, np.int64)
    height, width = cells.shape
    marks = (cells + 1) << _COLOUR | np.arange(height)[:, None] << _ROW | np.arange(width) << _COL
    step = characters + between
    lines = np.zeros((height, width * step - between + 1), np.int64)
    for character in range(characters):
        lines[:, character:-1:step] = marks
    return lines.ravel()[:-1]


def decide_roles(marks: Marks) -> Marks:
    """Take the assistant's role from the generation tags, if there are any."""
    generated = marks & GENERATED != 0
    if not generated.any():
        return marks
    assistant = role_bits("assistant")
    bare = np.where(_field(marks, _ROLE) == assistant, marks & ~_mask(_ROLE), marks)
    return np.where(generated, bare & ~_mask(_ROLE) | assistant, bare)


def token_labels(marks: Marks, offsets: Int64[np.ndarray, "tokens 2"]) -> Mapping[str, np.ndarray]:
    """Make the label columns of tokens; token i has characters `offsets[i, 0]` to `offsets[i, 1]`.

    A token without characters has the labels of the character before it.
    """
    begin, end = offsets[:, 0].copy(), offsets[:, 1]
    begin[begin == end] -= 1  # at the very beginning: -1, which means no character
    padded = np.append(marks, 0)
    role = padded[_first(_field(marks, _ROLE) != 0, begin, end)]
    is_cell = _field(marks, _COLOUR) != 0
    cell_at = _first(is_cell, begin, end)
    cell = padded[cell_at]
    has_cell = cell != 0
    grid = np.where(has_cell, cell, padded[_first(_field(marks, _SIDE) != 0, begin, end)])
    count, colours = _cells(marks, is_cell, cell_at, end, has_cell)
    columns = {
        "role": _field(role, _ROLE),
        "example": _numbered(_field(grid, _EXAMPLE)),
        "side": _field(grid, _SIDE),
        "row": np.where(has_cell, _field(cell, _ROW), NONE),
        "col": np.where(has_cell, _field(cell, _COL), NONE),
        "colours": colours,
        "cells": count,
    }
    return {name: values.astype(COLUMNS[name]) for name, values in columns.items()}


def _mask(field: int) -> int:
    return ((1 << _BITS[field]) - 1) << field


def _field(marks: Marks, field: int) -> Marks:
    return marks >> field & ((1 << _BITS[field]) - 1)


def _numbered(example: Marks) -> Marks:
    numbers = example - _EXAMPLE_FROM
    return np.where(example == 0, NONE, np.where(numbers < 0, TEST, numbers))


def _first(
    wanted: Bool[np.ndarray, " characters"], begin: Int64[np.ndarray, " tokens"], end: Int64[np.ndarray, " tokens"]
) -> Int64[np.ndarray, " tokens"]:
    """Return the first wanted character of each token; one past the last character if it has
    none.
    """
    places = np.where(wanted, np.arange(len(wanted)), len(wanted))
    following = np.append(np.minimum.accumulate(places[::-1])[::-1], len(wanted))
    found = following[np.clip(begin, 0, len(wanted))]
    return np.where((found < end) & (begin >= 0), found, len(wanted))


def _cells(
    marks: Marks,
    is_cell: Bool[np.ndarray, " characters"],
    cell_at: Int64[np.ndarray, " tokens"],
    end: Int64[np.ndarray, " tokens"],
    has_cell: Bool[np.ndarray, " tokens"],
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " tokens"]]:
    """Return how many cells each token covers, and their colours."""
    begins = is_cell & (marks != np.append(0, marks[:-1]))
    begun = np.append(0, np.cumsum(begins))
    before = begun[np.minimum(cell_at + 1, len(marks))] - 1
    count = np.where(has_cell, begun[end] - before, 0)
    each = np.append(_field(marks[begins], _COLOUR) - 1, np.zeros(_MOST_COLOURS, np.int64))
    colours = np.where(has_cell, 0, NONE)
    for place in range(min(int(count.max(initial=0)), _MOST_COLOURS)):
        colours += np.where(place < count, each[before + place] * 10**place, 0)
    return count, colours
