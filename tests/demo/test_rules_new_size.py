"""Each family is held to its rule, restated here in plain Python; one restatement must explain all pairs of a task."""

import operator
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from layertap.demo import rules_new_size

Rows = list[list[int]]
Law = Callable[[Rows, Rows], bool]  # does this question have this answer?


def makes(rule: Callable[[Rows], Rows]) -> Law:
    return lambda given, answer: rule(given) == answer


def cut(rows: Rows) -> Rows:
    def without_blank_ends(lines):
        full = [place for place, line in enumerate(lines) if any(line)]
        return lines[full[0] : full[-1] + 1]

    columns = without_blank_ends(list(zip(*without_blank_ends(rows), strict=True)))
    return [list(row) for row in zip(*columns, strict=True)]


def framed(colour: int, rows: Rows) -> Rows:
    edge = [colour] * (len(rows[0]) + 2)
    return [edge, *([colour, *row, colour] for row in rows), edge]


def repeated(down: int, across: int, rows: Rows) -> Rows:
    return [row * across for row in rows] * down


def enlarged(factor: int, rows: Rows) -> Rows:
    return [[cell for cell in row for _ in range(factor)] for row in rows for _ in range(factor)]


def counted(colour: int, rows: Rows) -> Rows:
    """Objects are rectangles that do not touch, so each has one upper left corner."""
    corners = [
        (r, c)
        for r, row in enumerate(rows)
        for c, cell in enumerate(row)
        if cell and not (r and rows[r - 1][c]) and not (c and row[c - 1])
    ]
    return [[colour] * len(corners)]


def overlaid(combine: Callable[[bool, bool], bool], colour: int, rows: Rows) -> Rows:
    half = len(rows[0]) // 2
    assert {row[half] for row in rows} == {5}
    return [
        [colour * combine(bool(one), bool(other)) for one, other in zip(row[:half], row[half + 1 :], strict=True)]
        for row in rows
    ]


COLOURS = range(1, 10)
LAWS: dict[str, list[Law]] = {
    "crop": [makes(cut)],
    "border": [makes(partial(framed, colour)) for colour in COLOURS],
    "tile": [makes(partial(repeated, down, across)) for down in (1, 2, 3) for across in (1, 2, 3) if down * across > 1],
    "scale_up": [makes(partial(enlarged, factor)) for factor in (2, 3)],
    "mirror_concatenate": [
        makes(lambda rows: rows + rows[::-1]),
        makes(lambda rows: [row + row[::-1] for row in rows]),
    ],
    "count": [makes(partial(counted, colour)) for colour in COLOURS],
    "combine_halves": [
        makes(partial(overlaid, combine, colour))
        for combine in (operator.and_, operator.or_, operator.xor)
        for colour in COLOURS
    ],
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", LAWS)
def test_one_rule_explains_every_pair_of_a_task(name, seed):
    task = Random(seed)
    draw = getattr(rules_new_size, name)(task)
    pairs = [tuple(cells.tolist() for cells in draw(task)) for _ in range(6)]
    assert any(all(law(given, answer) for given, answer in pairs) for law in LAWS[name])
