"""Sample ARC tasks, made on the spot.

The demo must run with no download, so its tasks are drawn from puzzle families of our own
(`families`). Task `i` of a seed depends on nothing but `(seed, i)`: asking for more tasks only adds
to the end, and every machine makes the same ones. Each has 3 or 4 demonstrations and 1 or 2 tests,
grids of 1 to 30 a side.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from layertap.core.records import Grid, Pair, Task
from layertap.dataset import as_row
from layertap.demo.families import FAMILIES
from layertap.demo.scenes import Cells, Draw
from layertap.objects.files import atomic_write


def make_tasks(count: int = 24, seed: int = 0) -> list[Task]:
    """`count` tasks, going round the families; ids are like `demo_gravity_00`."""
    return [_make_task(index, seed) for index in range(count)]


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write one JSON object a line, with `task_id`, `train` and `test`, in place of what was there.

    Raises StorageError where the system refuses the writing.
    """
    with atomic_write(path) as file:
        for task in tasks:
            file.write(json.dumps(as_row(task)).encode() + b"\n")


def _make_task(index: int, seed: int) -> Task:
    lap, place = divmod(index, len(FAMILIES))
    family = FAMILIES[place]
    task_id = f"demo_{family.__name__}_{lap:02}"
    rng = Random(f"{seed}/{task_id}")
    trains, tests = rng.randint(3, 4), rng.randint(1, 2)
    pairs = _draw_pairs(family(rng), rng, trains + tests)
    return Task(task_id, train=pairs[:trains], test=pairs[trains:])


def _draw_pairs(draw: Draw, rng: Random, wanted: int) -> tuple[Pair, ...]:
    """Pairs with different inputs, none of which the rule leaves as it was (a symmetric picture,
    say, when mirroring).

    This ends because every family changes nearly every picture it draws.
    """
    pairs: dict[Grid, Pair] = {}
    while len(pairs) < wanted:
        given, answer = map(_as_grid, draw(rng))
        if given != answer:
            pairs[given] = Pair(given, answer)
    return tuple(pairs.values())


def _as_grid(cells: Cells) -> Grid:
    return tuple(map(tuple, cells.tolist()))
