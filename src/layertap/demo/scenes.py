"""Random pictures for the sample tasks, what rules ask of them, and what a puzzle family is.

A family is called once a task and draws what the task keeps: a direction, a colour, a factor. It
gives back a `Draw`, which is called once a pair and draws what changes: size, picture, places. So
one rule holds for every pair of a task, and its parameters can be learnt from nothing but the
demonstrations.

Colour 0 is the background. Everything random comes from the `random.Random` that is handed in,
whose stream Python keeps stable, so a picture depends on nothing but its seed.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]  # [rows, columns], colours 0 to 9
Mask = NDArray[np.bool_]  # [rows, columns]
Draw = Callable[[Random], tuple[Cells, Cells]]
Family = Callable[[Random], Draw]
Rule = Callable[[Cells], Cells]

GREY = 5  # walls and dividers, in every task that has them
_PLACING_TRIES = 40


def draw_size(rng: Random, low: int, high: int) -> tuple[int, int]:
    """Draw rows and columns, each between `low` and `high`."""
    return rng.randint(low, high), rng.randint(low, high)


def draw_colours(rng: Random, count: int, *, but: Collection[int] = ()) -> list[int]:
    """Draw `count` different colours, none of them the background or in `but`."""
    return rng.sample([colour for colour in range(1, 10) if colour not in but], count)


def applied(rule: Rule, scene: Callable[[Random], Cells] | None = None) -> Draw:
    """Make pairs of a scene (speckles by default) and the result of the rule."""

    def draw(rng: Random) -> tuple[Cells, Cells]:
        cells = (scene or speckled)(rng)
        return cells, rule(cells)

    return draw


def turned(draw: Draw, quarters: int) -> Draw:
    """Make the pairs of `draw` with both pictures rotated by `quarters` of a circle."""

    def turned_draw(rng: Random) -> tuple[Cells, Cells]:
        given, answer = draw(rng)
        return np.rot90(given, quarters), np.rot90(answer, quarters)

    return turned_draw


def speckled(
    rng: Random, *, low: int = 3, high: int = 14, density: float = 0.5, palette: Sequence[int] | None = None
) -> Cells:
    """Make a grid of `low` to `high` a side; each cell is coloured with probability `density`."""
    rows, columns = draw_size(rng, low, high)
    palette = palette or draw_colours(rng, 3)
    cells = [rng.choice(palette) if rng.random() < density else 0 for _ in range(rows * columns)]
    return np.array(cells).reshape(rows, columns)


def solid(rng: Random, colour: int, *, low: int = 1, high: int = 3) -> Cells:
    """Make a filled rectangle of `low` to `high` a side."""
    return np.full(draw_size(rng, low, high), colour)


def placed(rng: Random, stamps: Iterable[Cells], *, low: int = 8, high: int = 14) -> Cells:
    """An empty grid of `low` to `high` a side with the stamps on it, each at least one cell from
    any other.

    The first stamp always finds its place; a later one is left out where no room for it is found.
    """
    canvas = np.zeros(draw_size(rng, low, high), dtype=np.int64)
    for stamp in stamps:
        for _ in range(_PLACING_TRIES):
            row = rng.randint(0, canvas.shape[0] - stamp.shape[0])
            column = rng.randint(0, canvas.shape[1] - stamp.shape[1])
            bottom, right = row + stamp.shape[0], column + stamp.shape[1]
            if not canvas[max(row - 1, 0) : bottom + 1, max(column - 1, 0) : right + 1].any():
                canvas[row:bottom, column:right] = stamp
                break
    return canvas


def boxes(rng: Random, *, but: int = 0) -> Cells:
    """Make two to five rectangles in different colours, none of them `but`."""
    return placed(rng, [solid(rng, colour, high=4) for colour in draw_colours(rng, rng.randint(2, 5), but=(but,))])


def grown(mask: Mask) -> Mask:
    """Return the mask with the cells that share a side with it."""
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def flooded(mask: Mask, start: tuple[int, int]) -> Mask:
    """Return the part of `mask` that can be reached from the cell `start` over sides."""
    reached = np.zeros_like(mask)
    reached[start] = mask[start]
    while True:
        wider = grown(reached) & mask
        if np.array_equal(wider, reached):
            return reached
        reached = wider


def components(mask: Mask) -> list[Mask]:
    """Return the connected parts of `mask`, by their first cell in reading order."""
    left, parts = mask.copy(), []
    while left.any():
        row, column = np.argwhere(left)[0]
        parts.append(flooded(left, (int(row), int(column))))
        left &= ~parts[-1]
    return parts


def enclosed(mask: Mask) -> Mask:
    """Return the cells outside `mask` from which no path leads out of the grid."""
    free = np.pad(~mask, 1, constant_values=True)
    return (free & ~flooded(free, (0, 0)))[1:-1, 1:-1]
