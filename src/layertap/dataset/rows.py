"""One record: JSON text in, one checked `Task` or `Document` out, or one sentence about the first
thing that is wrong.

JSON is read more strictly than by `json.loads`, which raises four kinds of errors, and silently
keeps the last value of a key that comes twice: in a file {id: task} that would lose a task. The
check costs one Python call per object, which is little beside its grids.

Whatever `prompts` and `extract` rely on is made sure here, once: grids are rectangular, 1 to 30
cells a side, of whole numbers 0 to 9; train pairs have outputs; there is something to test. A test
output may be missing: it is then None. Python calls `True` and `1.0` equal to 1, so cells are
judged by their type first. A sound row costs three passes at C speed; only a row that failed is
searched for the wrong cell. Messages count pairs, rows and cells from 1.

`as_row` is the way back. Whatever shape a record was read in, it is written in the simplest one,
with its id beside it. Reading the row back gives an equal record, also with the id that its old
place gave it.
"""

import json
import reprlib
from typing import Any

from layertap.core.records import Conversation, Document, GoodRecord, Grid, Pair, Task, TokenList
from layertap.errors import BadTaskError

_MAX_SIDE = 30
_MAX_COLOUR = 9
_KIND_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def parse(data: bytes) -> object:
    """The one JSON value in `data`, which is UTF-8 with or without byte-order mark."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadTaskError(f"is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if b"\n" in data.strip() else ""
        raise BadTaskError(f"is not JSON: {error.msg} at {line}column {error.colno}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise BadTaskError(f"holds a number that cannot be read: {error}") from error
    except RecursionError as error:
        raise BadTaskError("is not a task: its lists are nested too deeply") from error


def kind_name(value: object) -> str:
    """What JSON calls this value, with its article: "an object", "a list", ..."""
    return _KIND_NAMES[type(value)]


def task_from_splits(raw: object, task_id: str) -> Task:
    """The task in `{"train": [pair, ...], "test": [pair, ...]}`."""
    if not isinstance(raw, dict):
        raise BadTaskError(f"is {kind_name(raw)}, not an object with 'train' and 'test'")
    train, test = _pair_list(raw, "train"), _pair_list(raw, "test")
    return Task(
        task_id,
        tuple(_pair(pair, f"train pair {number}", needs_output=True) for number, pair in enumerate(train, 1)),
        tuple(_pair(pair, f"test pair {number}", needs_output=False) for number, pair in enumerate(test, 1)),
    )


def task_from_problem(raw: object, task_id: str) -> Task:
    """The task in `{"examples": [[input, output], ...]}`, the last pair being the test."""
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


def task_from_pairs(raw: object, task_id: str) -> Task:
    """The task in a bare list of `{"input", "output"}`, the last pair being the test."""
    if not isinstance(raw, list):
        raise BadTaskError(f"is {kind_name(raw)}, not a list of pairs")
    return _last_is_test(raw, "pair", task_id)


def document_from_row(raw: object, task_id: str) -> Document:
    """The document in `{"text": ...}`. An empty text is refused: it has no tokens to read."""
    if not isinstance(raw, dict) or "text" not in raw:
        raise BadTaskError(f"is {kind_name(raw)} without 'text'")
    return Document(task_id, sound_text(raw["text"], "'text'", "a text"))


def sound_text(value: object, where: str, wanted: str) -> str:
    """`value`, if it is a text of whole characters; else BadTaskError that calls it `where`."""
    if not isinstance(value, str):
        raise BadTaskError(f"{where} is {kind_name(value)}, not {wanted}")
    if not value:
        raise BadTaskError(f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell it, UTF-8 and tokenizers cannot
        raise BadTaskError(f"{where} has half a surrogate pair at character {error.start + 1}") from error
    return value


def as_row(record: GoodRecord) -> dict[str, Any]:
    """The JSON object that `read_records` reads as an equal record."""
    if isinstance(record, Document):
        return {"task_id": record.task_id, "text": record.text}
    if isinstance(record, Conversation):
        tools = {"tools": list(record.tools)} if record.tools else {}
        return {"task_id": record.task_id, "messages": list(record.messages), **tools}
    if isinstance(record, TokenList):
        return {"task_id": record.task_id, "input_ids": list(record.token_ids)}
    return {"task_id": record.task_id, "train": _raw_pairs(record.train), "test": _raw_pairs(record.test)}


def _raw_pairs(pairs: tuple[Pair, ...]) -> list[dict[str, Grid]]:
    return [
        {"input": pair.input} if pair.output is None else {"input": pair.input, "output": pair.output} for pair in pairs
    ]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadTaskError(f"has the key {reprlib.repr(twice)} twice in one object")
    return made


def _last_is_test(raw: list[object], noun: str, task_id: str) -> Task:
    if len(raw) < 2:
        raise BadTaskError(f"has {len(raw)} {noun}s; at least two are needed, as the last one is the test")
    pairs = [_pair(pair, f"{noun} {number}", needs_output=True) for number, pair in enumerate(raw, 1)]
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
    if wanted is None and needs_output:
        raise BadTaskError(f"{where} has no output")
    return Pair(given, None if wanted is None else _grid(wanted, f"{where} output"))


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
