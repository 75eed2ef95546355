"""Check ARC tasks: grids, pairs, and the formats in which tasks are published.  This module
guarantees what `prompts` and `extract` rely on: grids are rectangular, 1 to 30 cells a side, of
whole numbers 0 to 9; train pairs have outputs; there is something to test. In every format, a test
output may be unknown: missing, null or an empty list. It is then None. In Python `True` and `1.0`
equal 1, so we check the type of a cell first. A valid row costs three passes at C speed; only an
invalid row is searched for the wrong cell. Messages count pairs, rows and cells from 1.
"""

import reprlib
from typing import Any

from layertap.core.records import Grid, Pair, Task
from layertap.dataset.rows import kind_name
from layertap.errors import BadTaskError

_MAX_SIDE = 30
_MAX_COLOUR = 9
UNKNOWN: tuple[object, ...] = (None, [])
"""Values that mean that an output is unknown."""


def task_from_splits(raw: object, task_id: str) -> Task:
    """Read the task in `{"train": [pair, ...], "test": [pair, ...]}`."""
    if not isinstance(raw, dict):
        raise BadTaskError(f"is {kind_name(raw)}, not an object with 'train' and 'test'")
    train, test = _pair_list(raw, "train"), _pair_list(raw, "test")
    return Task(
        task_id,
        tuple(_pair(pair, f"train pair {number}", needs_output=True) for number, pair in enumerate(train, 1)),
        tuple(_pair(pair, f"test pair {number}", needs_output=False) for number, pair in enumerate(test, 1)),
    )


def task_from_problem(raw: object, task_id: str) -> Task:
    """Read the task in `{"examples": [[input, output], ...]}`; the last pair is the test."""
    if not isinstance(raw, dict) or "examples" not in raw:
        lacking = "an object without 'examples'" if isinstance(raw, dict) else kind_name(raw)
        raise BadTaskError(f"is {lacking}, not a problem with 'examples'")
    examples = raw["examples"]
    if not isinstance(examples, list):
        raise BadTaskError(f"'examples' is {kind_name(examples)}, not a list of [input, output]")
    for number, example in enumerate(examples, 1):
        if not isinstance(example, list) or len(example) != 2:
            raise BadTaskError(f"example {number} is not a list of two, [input, output]")
    return _last_is_test([{"input": given, "output": wanted} for given, wanted in examples], "example", task_id)


def sound_pairs(raw: object) -> tuple[object, list[str]]:
    """Return a list of pairs without the malformed ones, and what is wrong with each of these.

    If fewer than two are valid, `raw` is returned unchanged, and `task_from_pairs` reports the
    error.
    """
    if not isinstance(raw, list):
        return raw, []
    sound, reasons = [], []
    for number, pair in enumerate(raw, 1):
        try:
            _pair(pair, f"pair {number}", needs_output=number < len(raw))
        except BadTaskError as error:
            reasons.append(str(error))
        else:
            sound.append(pair)
    return (sound, reasons) if len(sound) >= 2 else (raw, [])


def task_from_pairs(raw: object, task_id: str) -> Task:
    """Read the task in a bare list of `{"input", "output"}`; the last pair is the test."""
    if not isinstance(raw, list):
        raise BadTaskError(f"is {kind_name(raw)}, not a list of pairs")
    return _last_is_test(raw, "pair", task_id)


def _last_is_test(raw: list[object], noun: str, task_id: str) -> Task:
    if len(raw) < 2:
        raise BadTaskError(f"has {len(raw)} {noun}s; at least two are needed, because the last one is the test")
    last = len(raw)
    pairs = [_pair(pair, f"{noun} {number}", needs_output=number < last) for number, pair in enumerate(raw, 1)]
    return Task(task_id, tuple(pairs[:-1]), tuple(pairs[-1:]))


def _pair_list(raw: dict[str, object], split: str) -> list[object]:
    if split not in raw:
        raise BadTaskError(f"lacks {split!r}")
    pairs = raw[split]
    if not isinstance(pairs, list):
        raise BadTaskError(f"{split!r} is {kind_name(pairs)}, not a list of pairs")
    if not pairs:
        raise BadTaskError(f"{split!r} is empty")
    return pairs


def _pair(raw: object, where: str, *, needs_output: bool) -> Pair:
    if not isinstance(raw, dict):
        raise BadTaskError(f"{where} is {kind_name(raw)}, not an object with 'input' and 'output'")
    if "input" not in raw:
        raise BadTaskError(f"{where} lacks 'input'")
    given = _grid(raw["input"], f"{where} input")
    wanted = raw.get("output")
    if wanted in UNKNOWN and needs_output:
        raise BadTaskError(f"{where} has no output")
    return Pair(given, None if wanted in UNKNOWN else _grid(wanted, f"{where} output"))


def _grid(raw: object, where: str) -> Grid:
    if not isinstance(raw, list):
        raise BadTaskError(f"{where} is {kind_name(raw)}, not a grid (a list of rows)")
    for number, row in enumerate(raw, 1):
        if not isinstance(row, list):
            raise BadTaskError(f"{where}: row {number} is {kind_name(row)}, not a list")
    if not raw or not raw[0]:
        raise BadTaskError(f"{where}: the grid is empty")
    for number, row in enumerate(raw, 1):
        if len(row) != len(raw[0]):
            raise BadTaskError(f"{where}: row {number} has {len(row)} cells, row 1 has {len(raw[0])}")
    if len(raw) > _MAX_SIDE or len(raw[0]) > _MAX_SIDE:
        raise BadTaskError(f"{where}: {len(raw)} rows of {len(raw[0])} cells; a grid has at most {_MAX_SIDE} a side")
    return tuple(_row(row, f"{where}: row {number}") for number, row in enumerate(raw, 1))


def _row(raw: list[Any], where: str) -> tuple[int, ...]:
    if set(map(type, raw)) == {int} and min(raw) >= 0 and max(raw) <= _MAX_COLOUR:
        return tuple(raw)
    column, cell = next((number, cell) for number, cell in enumerate(raw, 1) if not _is_colour(cell))
    raise BadTaskError(
        f"{where}, cell {column} is {reprlib.repr(cell)}, not a colour (a whole number 0 to {_MAX_COLOUR})"
    )


def _is_colour(cell: object) -> bool:
    return type(cell) is int and 0 <= cell <= _MAX_COLOUR
