"""What a puzzle family is, and the two ways most of them are put together.

A family is called once a task and draws what the task keeps: a direction, a colour, a factor. It gives back a `Draw`,
which is called once a pair and draws what changes: size, picture, places. So one rule holds for every pair of a task,
and its parameters can be learnt from nothing but the demonstrations.
"""

from collections.abc import Callable
from random import Random

import numpy as np

from layertap.demo.scenes import Cells, speckled

Draw = Callable[[Random], tuple[Cells, Cells]]
Family = Callable[[Random], Draw]
Rule = Callable[[Cells], Cells]

GREY = 5  # walls and dividers, in every task that has them


def applied(rule: Rule, scene: Callable[[Random], Cells] = speckled) -> Draw:
    """Pairs of a scene and what the rule makes of it."""

    def draw(rng: Random) -> tuple[Cells, Cells]:
        cells = scene(rng)
        return cells, rule(cells)

    return draw


def turned(rule: Rule, quarters: int) -> Rule:
    """The rule in another direction: turn the picture by `quarters` of a circle, apply the rule, turn it back."""
    return lambda cells: np.rot90(rule(np.rot90(cells, quarters)), -quarters)
