"""Find the record in a row of a table or of JSON lines: the row itself, or one column.  If you name
a column, the record is that column's value. The rest of the row gives its id and what belongs to
it: the tools and system text of a conversation, or the mask of token ids.

    a text                             a document; or another kind, if the text is its JSON
    [[input, output], ...]             a BARC problem
    [{"input", "output"}, ...]         the pairs of one task (RE-ARC)
    {"train": [...], "test": [...]}    a task
    [{"role", "content"}, ...]         a conversation; also {"from", "value"}
    [151644, 872, ...]                 token ids
    an object with a known key         a record of that kind (formats.py)

The JSON of a list of numbers stays a text, because a text may look like that. It is a list of ids
only in a column named `input_ids` or `token_ids`. A text may also look like a task ("[[1, 2], [3,
4]]"). So the JSON of a task counts as a task only if it is valid, or has a grid where a task has
one.

Tables have other types than JSON: an absent key is null, and a list of pairs may be an object of
lists. `plain` converts them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

from layertap.core.records import BadTask
from layertap.dataset.formats import RECORD_KEYS, RecordKind, file_kind, record_kind
from layertap.dataset.rows import kind_name, parse, without_nulls
from layertap.dataset.tasks import sound_pairs, task_from_pairs, task_from_problem, task_from_splits
from layertap.errors import BadTaskError

ID_KEYS = ("task_id", "id", "uid")
_BESIDE = (*ID_KEYS, "tools", "system", "attention_mask")
ROW_KEYS = (*RECORD_KEYS, *_BESIDE)
"""Every key that is read if no column is named."""
_PAIRS_UNDER = ("train", "test", "examples")
_TASK_CHECKS: Mapping[RecordKind, Callable[[object], object]] = {
    "task": lambda raw: task_from_splits(raw, ""),
    "problem": lambda raw: task_from_problem(raw, ""),
    "pairs": lambda raw: task_from_pairs(sound_pairs(raw)[0], ""),
}


@dataclass(frozen=True)
class RawRecord:
    """One unchecked record; `task_id` is the id from a file's stem or a key, if there is one."""

    where: str
    kind: RecordKind
    value: object
    task_id: str | None


RawRecords = Iterator[RawRecord | BadTask]


def needed_columns(column: str | None) -> tuple[str, ...]:
    """Return the columns of a table to read."""
    return ROW_KEYS if column is None else (column, *_BESIDE)


def record_of_row(where: str, row: object, column: str | None, kind: RecordKind | None = None) -> RawRecord | BadTask:
    """Return the record in a row; `kind` overrides the kind that its keys imply."""
    row = without_nulls(row)
    if column is None:
        return RawRecord(where, kind or record_kind(row), row, None)
    if not isinstance(row, dict):
        return BadTask(where, None, f"is {kind_name(row)}, not a row with the column {column!r}")
    if column not in row:
        found = ", ".join(row) or "nothing"
        return BadTask(where, None, f"its column {column!r} is null or missing; it has {found}")
    return _from_column(where, row, column)


def plain(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """Convert a row of a table to JSON's types: no nulls in objects, lists of pairs.

    Pairs are converted only where a task has them. Elsewhere, as in the arguments of a tool, an
    object of `input` and `output` stays as it is.
    """
    made: dict[str, Any] = _as_json(row)
    if column is None:
        return _with_pairs(made)
    if isinstance(made.get(column), dict):
        made[column] = _as_pairs(_with_pairs(made[column]))
    return made


def _as_json(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Remove nulls from objects, and convert types that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _as_json(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    return value.isoformat() if isinstance(value, date | time) else value


def _with_pairs(record: dict[str, Any]) -> dict[str, Any]:
    return {key: _as_pairs(value) if key in _PAIRS_UNDER else value for key, value in record.items()}


def _as_pairs(value: object) -> object:
    """Convert an object of lists of grids to a list of pairs; return anything else unchanged."""
    if not isinstance(value, dict) or not value or not value.keys() <= {"input", "output"}:
        return value
    sides = list(value.values())
    if not all(map(_is_column, sides)) or len(set(map(len, sides))) != 1:
        return value
    return [dict(zip(value, pair, strict=True)) for pair in zip(*sides, strict=True)]


def _from_column(where: str, row: dict[str, Any], column: str) -> RawRecord:
    """Return the record in one column, with what belongs to it from other columns."""
    record = _record_in(row[column], column)
    beside = {key: row[key] for key in _BESIDE if key in row and key != column}
    if isinstance(record, dict):
        return RawRecord(where, record_kind(record), {**beside, **record}, None)
    return RawRecord(where, "pairs", record, next((beside[key] for key in ID_KEYS if key in beside), None))


def _record_in(value: object, column: str) -> object:
    """Convert a column's value to an object that is a record, or a list of {input, output}."""
    if isinstance(value, str):
        return _record_of_json(value, column) or {"text": value}
    return _record_of_list(value) if isinstance(value, list) else without_nulls(value)


def _record_of_list(value: list[Any]) -> object:
    kinds = set(map(type, value))
    if kinds == {int}:
        return {"input_ids": value}
    if kinds == {list}:
        return {"examples": value}
    return {"messages": value} if file_kind(value) == "messages" else value


def _record_of_json(text: str, column: str) -> object | None:
    """Return the record that `text` encodes as JSON; None for plain text and for an invalid
    task.
    """
    record = _parsed_record(text, column)
    check = _TASK_CHECKS.get(record_kind(record) if isinstance(record, dict) else "pairs")
    if record is not None and check is not None and not _is_meant(record):
        try:
            check(record)
        except BadTaskError:
            return None
    return record


def _is_meant(record: object) -> bool:
    """Return whether `record` has a grid where a task has one: then it is a task, valid or not."""
    match record:
        case {"train": list() as train, "test": list() as test}:
            return _is_meant([*train, *test])
        case {"train": _}:
            return False
        case {"examples": list() as pairs}:
            return any(_depth(side) >= 2 for pair in pairs if isinstance(pair, list) for side in pair)
        case list():
            return any(isinstance(pair, dict) and _depth(pair.get("input")) >= 2 for pair in record)
    return False


def _parsed_record(text: str, column: str) -> object | None:
    """Return the record that `text` encodes as JSON, valid or not; None if there is none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = parse(text.encode("utf-8", "surrogatepass"))
    except BadTaskError:
        return None
    if not isinstance(value, list):
        return without_nulls(value) if file_kind(value) in ("task", "problem", "chat") else None
    if value and all(isinstance(it, list) and len(it) == 2 for it in value):
        return {"examples": value}
    if set(map(type, value)) == {int}:
        return {"input_ids": value} if RECORD_KEYS.get(column) == "tokens" else None
    return _record_of_list(value) if file_kind(value) in ("pairs", "messages") else None


def _is_column(value: object) -> bool:
    """Return whether a side of pairs is a list of grids, not one grid."""
    return isinstance(value, list) and _depth(value) >= 3


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth
