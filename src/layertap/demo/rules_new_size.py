"""Families of puzzles whose answer has another size than the question: cut, repeated, enlarged, framed, summed up.

A question is kept small where its answer grows, so that no grid passes ARC's 30 cells a side.
"""

from functools import partial
from random import Random

import numpy as np

from layertap.demo.drawing import GREY, Draw, applied
from layertap.demo.scenes import Cells, components, draw_colours, placed, solid, speckled


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
    """The picture and its mirror image stand side by side."""
    axis = task.randrange(2)
    return applied(lambda cells: np.concatenate([cells, np.flip(cells, axis)], axis), partial(speckled, high=10))


def count(task: Random) -> Draw:
    """There are as many cells in the answer's single row as there are objects."""
    (colour,) = draw_colours(task, 1)

    def scene(rng: Random) -> Cells:
        return placed(rng, [solid(rng, rng.randint(1, 9)) for _ in range(rng.randint(1, 7))])

    return applied(lambda cells: np.full((1, len(components(cells != 0))), colour), scene)


def combine_halves(task: Random) -> Draw:
    """The halves left and right of a grey line are laid over each other and combined cell by cell."""
    combine = task.choice((np.logical_and, np.logical_or, np.logical_xor))
    left, right, colour = draw_colours(task, 3, but=(GREY,))

    def draw(rng: Random) -> tuple[Cells, Cells]:
        one = speckled(rng, high=7, palette=[left])
        other = np.array([rng.choice((0, right)) for _ in range(one.size)]).reshape(one.shape)
        line = np.full((len(one), 1), GREY)
        return np.hstack([one, line, other]), np.where(combine(one, other), colour, 0)

    return draw
