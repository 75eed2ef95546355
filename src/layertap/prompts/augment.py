"""Augment ARC tasks without changing the puzzle: mirror, rotate, recolour, reorder.

One augmentation applies to all grids of a task, so the rule that links inputs to outputs survives,
and `revert` undoes it exactly. The augmentation of a prompt depends only on (seed, task id,
prediction index), not on earlier tasks, the worker, the platform or the Python release. So the
random bits are the SHA-256 of those three, and the shuffle is written here. `random.shuffle` and
NumPy's generators promise no stable stream between versions, but a run that resumes after an
upgrade must end with the same bytes. The cost is a few microseconds per prompt.

Colour 0 is the background in most tasks and models rely on that, so nine augmentations in ten keep
it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from layertap.core.records import Grid, Pair, Task
from layertap.errors import PromptError

_COLORS = 10
_QUARTER_TURNS = 4
_BACKGROUND_MOVES_ONE_IN = 10


@dataclass(frozen=True)
class Augmentation:
    """One invertible change of a task: mirror left to right, rotate, recolour, reorder its
    pairs.
    """

    flip: bool
    """Mirror every row before rotating."""
    rotations: int
    """Clockwise quarter turns, 0 to 3."""
    colors: tuple[int, ...]
    """A permutation of 0 to 9: colour c becomes `colors[c]`."""
    train_order: tuple[int, ...]
    """A permutation of the train pairs: position i shows the pair that was at `train_order[i]`."""

    def __post_init__(self) -> None:
        """Refuse values that could not be reverted."""
        if not 0 <= self.rotations < _QUARTER_TURNS:
            raise PromptError(f"augmentation: rotations is {self.rotations}; quarter turns go from 0 to 3")
        if sorted(self.colors) != list(range(_COLORS)):
            raise PromptError(f"augmentation: colors {self.colors} is not a permutation of 0 to 9")
        if sorted(self.train_order) != list(range(len(self.train_order))):
            raise PromptError(f"augmentation: train_order {self.train_order} is not a permutation")

    def apply_grid(self, grid: Grid) -> Grid:
        """Return the augmented grid; odd `rotations` swap its height and width."""
        return _recolor(_turn(_mirror(grid) if self.flip else grid, self.rotations), self.colors)

    def revert_grid(self, grid: Grid) -> Grid:
        """Return the grid that `apply_grid` turned into `grid`."""
        turned_back = _turn(_recolor(grid, _inverse(self.colors)), -self.rotations % _QUARTER_TURNS)
        return _mirror(turned_back) if self.flip else turned_back

    def apply(self, task: Task) -> Task:
        """Return the augmented task; PromptError if `train_order` has another number of train
        pairs.
        """
        train = self._in_order(task, self.train_order)
        return Task(task.task_id, _map_pairs(self.apply_grid, train), _map_pairs(self.apply_grid, task.test))

    def apply_some(self, task: Task, most: int) -> Task:
        """Return the augmented task with only the first `most` pairs of `train_order`."""
        order = self.train_order[:most]
        some = Task(task.task_id, tuple(task.train[place] for place in order), task.test)
        return replace(self, train_order=tuple(range(len(order)))).apply(some)

    def revert(self, task: Task) -> Task:
        """Return the task that `apply` turned into `task`."""
        train = self._in_order(task, _inverse(self.train_order))
        return Task(task.task_id, _map_pairs(self.revert_grid, train), _map_pairs(self.revert_grid, task.test))

    def _in_order(self, task: Task, order: tuple[int, ...]) -> tuple[Pair, ...]:
        if len(task.train) != len(order):
            raise PromptError(
                f"task {task.task_id!r} has {len(task.train)} train pairs; the augmentation was drawn for {len(order)}"
            )
        return tuple(task.train[place] for place in order)


def draw_augmentation(seed: int, task_id: str, index: int, num_train: int) -> Augmentation:
    """Draw the augmentation of prediction `index` of a task with `num_train` train pairs.

    The same arguments give the same augmentation on every platform and Python version. All test
    inputs of a task share the augmentation of their prediction index.
    """
    draws = _draws(seed, task_id, index)
    flip = _below(2, draws) == 1
    rotations = _below(_QUARTER_TURNS, draws)
    background_moves = _below(_BACKGROUND_MOVES_ONE_IN, draws) == 0
    colors = _shuffled(range(_COLORS), draws) if background_moves else (0, *_shuffled(range(1, _COLORS), draws))
    return Augmentation(flip, rotations, colors, _shuffled(range(num_train), draws))


def _draws(seed: int, task_id: str, index: int) -> Iterator[int]:
    """Yield 64-bit numbers without end. JSON makes the key unambiguous for every task id."""
    key = json.dumps([seed, task_id, index]).encode("ascii")
    for block in count():
        digest = hashlib.sha256(key + block.to_bytes(8, "big")).digest()
        yield from (int.from_bytes(digest[start : start + 8], "big") for start in range(0, 32, 8))


def _below(bound: int, draws: Iterator[int]) -> int:
    # The remainder of 64 bits favours small numbers by less than bound / 2**64, which is
    # negligible.
    return next(draws) % bound


def _shuffled(items: range, draws: Iterator[int]) -> tuple[int, ...]:
    shuffled = list(items)
    for last in range(len(shuffled) - 1, 0, -1):
        other = _below(last + 1, draws)
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    return tuple(shuffled)


def _inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def _mirror(grid: Grid) -> Grid:
    return tuple(row[::-1] for row in grid)


def _turn(grid: Grid, quarter_turns: int) -> Grid:
    for _ in range(quarter_turns):
        grid = tuple(zip(*grid[::-1], strict=True))
    return grid


def _recolor(grid: Grid, colors: tuple[int, ...]) -> Grid:
    return tuple(tuple([colors[cell] for cell in row]) for row in grid)


def _map_pairs(change: Callable[[Grid], Grid], pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return tuple(Pair(change(pair.input), None if pair.output is None else change(pair.output)) for pair in pairs)
