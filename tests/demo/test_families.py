"""Each family keeps to its rule, restated here in plain Python for all pairs of a task."""

import operator
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from layertap.demo.families import FAMILIES

Rows = list[list[int]]
Law = Callable[[Rows, Rows], bool]  # does this question have this answer?


def turn(rows: Rows, quarters: int) -> Rows:
    for _ in range(quarters % 4):
        rows = [list(column) for column in zip(*rows, strict=True)][::-1]
    return rows


def makes(rule: Callable[[Rows], Rows]) -> Law:
    return lambda given, answer: rule(given) == answer


def in_any_direction(law: Law) -> list[Law]:
    return [lambda given, answer, k=k: law(turn(given, k), turn(answer, k)) for k in range(4)]


def replaced(table: dict[int, int]) -> Law:
    return makes(lambda rows: [[table.get(cell, cell) for cell in row] for row in rows])


def rolled(by: int, rows: Rows) -> Rows:
    return rows[-by:] + rows[:-by]


def fallen(rows: Rows) -> Rows:
    columns = [[cell for cell in column if cell] for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*([0] * (len(rows) - len(c)) + c for c in columns), strict=True)]


def rained(rows: Rows) -> Rows:
    wet = [rows[0]]
    for row in rows[1:]:
        wet.append([cell or above for cell, above in zip(row, wet[-1], strict=True)])
    return wet


def joined(rows: Rows) -> Rows:
    joint = []
    for row in rows:
        ends = [place for place, cell in enumerate(row) if cell]
        joint.append([row[ends[0]] if ends and ends[0] <= at <= ends[-1] else 0 for at in range(len(row))])
    return joint


def slid(given: Rows, answer: Rows) -> bool:
    if set(given[-1]) != {5} or answer[-1] != given[-1]:
        return False
    thing = [row for row in given[:-1] if any(row)]
    return answer[:-1] == [[0] * len(given[0])] * (len(given) - 1 - len(thing)) + thing


def neighbours(row: int, column: int) -> list[tuple[int, int]]:
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


def outlined(colour: int, rows: Rows) -> Rows:
    full = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell}
    return [
        [cell or (colour if full.intersection(neighbours(r, c)) else 0) for c, cell in enumerate(row)]
        for r, row in enumerate(rows)
    ]


def connected(cells: set[tuple[int, int]], start: tuple[int, int]) -> set[tuple[int, int]]:
    found, edge = {start}, {start}
    while edge:
        edge = {cell for place in edge for cell in neighbours(*place)} & (cells - found)
        found |= edge
    return found


def filled(colour: int, rows: Rows) -> Rows:
    around = {(r, c) for r in range(-1, len(rows) + 1) for c in range(-1, len(rows[0]) + 1)}
    walls = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell}
    outside = connected(around - walls, (-1, -1))
    return [[cell or (0 if (r, c) in outside else colour) for c, cell in enumerate(row)] for r, row in enumerate(rows)]


def largest(rows: Rows) -> Rows:
    full = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell}
    kept = max((connected(full, cell) for cell in full), key=len)
    return [[cell if (r, c) in kept else 0 for c, cell in enumerate(row)] for r, row in enumerate(rows)]


def by_height(descending: bool, rows: Rows) -> Rows:
    bars = sorted(zip(*rows, strict=True), key=lambda bar: sum(map(bool, bar)), reverse=descending)
    return [list(row) for row in zip(*bars, strict=True)]


def mirrored(given: Rows, answer: Rows) -> bool:
    half = len(given[0]) // 2
    expected = [row[:half] + row[:half][::-1] for row in given]
    return answer == expected and all(not any(row[half:]) for row in given)


def continued(given: Rows, answer: Rows) -> bool:
    width = len(given[0])
    shown = 2 * width // 3
    told = all(g == a[:shown] + [0] * (width - shown) for g, a in zip(given, answer, strict=True))
    return told and any(all(row[p:] == row[:-p] for row in answer) for p in range(1, width // 3 + 1))


def woven(given: Rows, answer: Rows) -> bool:
    half = len(given[0]) // 2
    halves = [{cell for row in given for cell in row[:half]}, {cell for row in given for cell in row[half:]}]
    sides = [
        {cell for r, row in enumerate(answer) for c, cell in enumerate(row) if (r + c) % 2 == odd} for odd in (0, 1)
    ]
    return [len(side) for side in halves] == [1, 1] and sorted(map(min, halves)) == sorted(map(min, sides))


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
    "reflect": [makes(lambda rows: rows[::-1]), makes(lambda rows: [row[::-1] for row in rows])],
    "rotate": [makes(partial(turn, quarters=k)) for k in (1, 2, 3)],
    "shift": [
        law
        for by in (-2, -1, 1, 2)
        for law in (makes(partial(rolled, by)), makes(lambda rows, by=by: [rolled(by, row) for row in rows]))
    ],
    "recolour": [replaced({old: new}) for old in COLOURS for new in COLOURS if old != new],
    "swap_colours": [replaced({a: b, b: a}) for a in COLOURS for b in COLOURS if a < b],
    "gravity": in_any_direction(makes(fallen)),
    "draw_lines": in_any_direction(makes(rained)),
    "connect": in_any_direction(makes(joined)),
    "move_until_wall": in_any_direction(slid),
    "outline": [makes(partial(outlined, colour)) for colour in COLOURS],
    "fill_holes": [makes(partial(filled, colour)) for colour in COLOURS],
    "denoise": [replaced({noise: 0}) for noise in COLOURS],
    "largest_object": [makes(largest)],
    "sort_columns": [makes(partial(by_height, descending)) for descending in (False, True)],
    "complete_symmetry": in_any_direction(mirrored),
    "extend_pattern": in_any_direction(continued),
    "checkerboard": in_any_direction(woven),
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("seed", range(6))
def test_one_rule_explains_every_pair_of_a_task(family, seed):
    task = Random(seed)
    draw = family(task)
    pairs = [tuple(cells.tolist() for cells in draw(task)) for _ in range(6)]
    assert any(all(law(given, answer) for given, answer in pairs) for law in LAWS[family.__name__])
