"""Families of ARC-style puzzles, all written for Layertap.

They are not meant to be hard: the demo needs prompts that look like ARC's in structure and length,
not a benchmark. If an answer is larger than its question, the question is kept small, so that no
grid exceeds ARC's 30 cells a side.
"""

from functools import partial
from random import Random

import numpy as np

from layertap.demo.scenes import (
    GREY,
    Cells,
    Draw,
    Family,
    applied,
    boxes,
    components,
    draw_colours,
    draw_size,
    enclosed,
    grown,
    placed,
    solid,
    speckled,
    turned,
)


def reflect(task: Random) -> Draw:
    """The picture is mirrored along one axis."""
    return applied(partial(np.flip, axis=task.randrange(2)))


def rotate(task: Random) -> Draw:
    """The picture is turned by a multiple of 90 degrees."""
    return applied(partial(np.rot90, k=task.randint(1, 3)))


def shift(task: Random) -> Draw:
    """Everything moves some cells along one axis; what leaves on one side comes in on the other."""
    return applied(partial(np.roll, shift=task.choice((-2, -1, 1, 2)), axis=task.randrange(2)))


def recolour(task: Random) -> Draw:
    """One colour becomes another."""
    old, new, *others = draw_colours(task, 4)
    return applied(lambda cells: np.where(cells == old, new, cells), partial(speckled, palette=[old, *others]))


def swap_colours(task: Random) -> Draw:
    """Two colours trade places; the others stay."""
    one, other, bystander = draw_colours(task, 3)
    table = np.arange(10)
    table[[one, other]] = other, one
    return applied(lambda cells: table[cells], partial(speckled, palette=[one, other, bystander]))


def gravity(task: Random) -> Draw:
    """Every cell falls to one side of the grid and lands on those before it."""

    def fall(cells: Cells) -> Cells:
        return np.take_along_axis(cells, np.argsort(cells != 0, axis=0, kind="stable"), axis=0)

    return turned(applied(fall), task.randrange(4))


def draw_lines(task: Random) -> Draw:
    """From every coloured cell a line runs one way, to the edge or the next coloured cell."""

    def rain(cells: Cells) -> Cells:
        wet = cells.copy()
        for row in range(1, len(wet)):
            wet[row] = np.where(wet[row] == 0, wet[row - 1], wet[row])
        return wet

    return turned(applied(rain, partial(speckled, low=5, density=0.08)), task.randrange(4))


def connect(task: Random) -> Draw:
    """Two cells of one colour in the same line are joined."""

    def join(cells: Cells) -> Cells:
        before = np.maximum.accumulate(cells, axis=1)
        behind = np.maximum.accumulate(cells[:, ::-1], axis=1)[:, ::-1]
        return np.minimum(before, behind)

    def scene(rng: Random) -> Cells:
        rows, columns = draw_size(rng, 5, 14)
        cells = np.zeros((rows, columns), dtype=np.int64)
        for row in rng.sample(range(rows), rng.randint(2, 4)):
            cells[row, rng.sample(range(columns), 2)] = rng.randint(1, 9)
        return cells

    return turned(applied(join, scene), task.randrange(2))


def move_until_wall(task: Random) -> Draw:
    """One object slides towards a grey wall until it touches it."""

    def slide(cells: Cells) -> Cells:
        wall = cells == GREY
        lone = np.where(wall, 0, cells)
        lowest = int(np.flatnonzero(lone.any(axis=1))[-1])
        return np.where(wall, GREY, np.roll(lone, len(cells) - 2 - lowest, axis=0))

    def scene(rng: Random) -> Cells:
        open_field = placed(rng, [solid(rng, *draw_colours(rng, 1, but=(GREY,)))], low=5)
        return np.pad(open_field, ((0, 1), (0, 0)), constant_values=GREY)

    return turned(applied(slide, scene), task.randrange(4))


def outline(task: Random) -> Draw:
    """Every object gets a line around it, in one colour."""
    (colour,) = draw_colours(task, 1)
    return applied(lambda cells: np.where(grown(cells != 0) & (cells == 0), colour, cells), partial(boxes, but=colour))


def fill_holes(task: Random) -> Draw:
    """What a closed outline encloses is filled with one colour."""
    (colour,) = draw_colours(task, 1)

    def ring(rng: Random) -> Cells:
        cells = solid(rng, *draw_colours(rng, 1, but=(colour,)), low=3, high=6)
        cells[1:-1, 1:-1] = 0
        return cells

    def scene(rng: Random) -> Cells:
        return placed(rng, [ring(rng) for _ in range(rng.randint(1, 3))])

    return applied(lambda cells: np.where(enclosed(cells != 0), colour, cells), scene)


def denoise(task: Random) -> Draw:
    """Stray cells of one colour disappear."""
    (noise,) = draw_colours(task, 1)

    def scene(rng: Random) -> Cells:
        clean = boxes(rng, but=noise)
        strays = np.array([rng.random() < 0.1 for _ in range(clean.size)]).reshape(clean.shape)
        return np.where(strays & (clean == 0), noise, clean)

    return applied(lambda cells: np.where(cells == noise, 0, cells), scene)


def largest_object(task: Random) -> Draw:
    """Only the object with the most cells stays."""
    (colour,) = draw_colours(task, 1)

    def keep(cells: Cells) -> Cells:
        return np.where(max(components(cells != 0), key=np.count_nonzero), cells, 0)

    def scene(rng: Random) -> Cells:
        small = [solid(rng, colour) for _ in range(rng.randint(2, 4))]
        return placed(rng, [solid(rng, colour, low=4, high=6), *small], low=9)

    return applied(keep, scene)


def sort_columns(task: Random) -> Draw:
    """Bars on the lower edge are ordered by height."""
    step = task.choice((1, -1))

    def scene(rng: Random) -> Cells:
        rows = rng.randint(4, 14)
        heights = rng.sample(range(1, rows + 1), rng.randint(3, min(rows, 10)))
        return np.array([[0] * (rows - height) + [rng.randint(1, 9)] * height for height in heights]).T

    return applied(lambda cells: cells[:, np.argsort(np.count_nonzero(cells, axis=0))[::step]], scene)


def complete_symmetry(task: Random) -> Draw:
    """The empty half becomes the mirror image of the other."""

    def draw(rng: Random) -> tuple[Cells, Cells]:
        half = speckled(rng, low=3, high=7)
        return np.hstack([half, np.zeros_like(half)]), np.hstack([half, half[:, ::-1]])

    return turned(draw, task.randrange(4))


def extend_pattern(task: Random) -> Draw:
    """A pattern that repeats itself is continued to the end of the grid."""

    def draw(rng: Random) -> tuple[Cells, Cells]:
        full = np.tile(speckled(rng, low=2, high=4, density=0.8), (rng.randint(2, 3), rng.randint(3, 4)))
        given = full.copy()
        given[:, 2 * full.shape[1] // 3 :] = 0
        return given, full

    return turned(draw, task.randrange(4))


def checkerboard(task: Random) -> Draw:
    """The colours of two halves are woven into a checkerboard."""
    quarters = task.randrange(4)

    def draw(rng: Random) -> tuple[Cells, Cells]:
        rows, columns = draw_size(rng, 3, 7)
        palette = np.array(draw_colours(rng, 2))
        halves = np.rot90(np.tile(palette.repeat(columns), (rows, 1)), quarters)
        return halves, palette[np.indices(halves.shape).sum(axis=0) % 2]

    return draw


def crop(task: Random) -> Draw:
    """What remains is the one object, with nothing around it."""
    palette = draw_colours(task, 3)

    def cut(cells: Cells) -> Cells:
        rows, columns = (np.flatnonzero((cells != 0).any(axis=axis)) for axis in (1, 0))
        return cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def scene(rng: Random) -> Cells:
        thing = speckled(rng, low=2, high=6, density=0.8, palette=palette)
        thing[0, 0] = palette[0]
        return placed(rng, [thing])

    return applied(cut, scene)


def border(task: Random) -> Draw:
    """The picture gets a frame of one colour."""
    (colour,) = draw_colours(task, 1)
    return applied(partial(np.pad, pad_width=1, constant_values=colour))


def tile(task: Random) -> Draw:
    """The picture is repeated side by side, a fixed number of times each way."""
    times = task.choice(((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 3)))
    return applied(partial(np.tile, reps=times), partial(speckled, high=7))


def scale_up(task: Random) -> Draw:
    """Every cell becomes a square block."""
    block = np.ones((task.randint(2, 3),) * 2, dtype=np.int64)
    return applied(lambda cells: np.kron(cells, block), partial(speckled, high=7))


def mirror_concatenate(task: Random) -> Draw:
    """The picture and its mirror image are side by side."""
    axis = task.randrange(2)
    return applied(lambda cells: np.concatenate([cells, np.flip(cells, axis)], axis), partial(speckled, high=10))


def count(task: Random) -> Draw:
    """There are as many cells in the answer's single row as there are objects."""
    (colour,) = draw_colours(task, 1)

    def scene(rng: Random) -> Cells:
        return placed(rng, [solid(rng, rng.randint(1, 9)) for _ in range(rng.randint(1, 7))])

    return applied(lambda cells: np.full((1, len(components(cells != 0))), colour), scene)


def combine_halves(task: Random) -> Draw:
    """The halves left and right of a grey line are combined cell by cell."""
    combine = task.choice((np.logical_and, np.logical_or, np.logical_xor))
    left, right, colour = draw_colours(task, 3, but=(GREY,))

    def draw(rng: Random) -> tuple[Cells, Cells]:
        one = speckled(rng, high=7, palette=[left])
        other = np.array([rng.choice((0, right)) for _ in range(one.size)]).reshape(one.shape)
        line = np.full((len(one), 1), GREY)
        return np.hstack([one, line, other]), np.where(combine(one, other), colour, 0)

    return draw


FAMILIES: tuple[Family, ...] = (
    gravity,
    reflect,
    crop,
    outline,
    scale_up,
    recolour,
    count,
    draw_lines,
    complete_symmetry,
    tile,
    fill_holes,
    rotate,
    sort_columns,
    combine_halves,
    move_until_wall,
    mirror_concatenate,
    largest_object,
    shift,
    extend_pattern,
    swap_colours,
    border,
    connect,
    checkerboard,
    denoise,
)
"""In this order, so that even the first few tasks differ in kind and in length."""
