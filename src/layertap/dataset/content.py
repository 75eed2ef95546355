"""One JSON value a line, or one JSON value in the whole file? Told from the beginning of the file.

The first line alone does not tell: `{` opens a pretty-printed file, and a line that was cut short looks the same. So
three lines and 64 KiB are read, whichever is more, which bounds the cost for a file of any size:

    the only line is JSON                                             one value
    the first line is not, but all together are JSON so far           one value, over several lines
    neither, but some line is a record                                a value a line, malformed lines among them
    none of these                                                     refused

A single value is read whole: its file has to fit in memory several times over. Lines are handed on one by one.

Two cases no content can settle, and only there the name (`.jsonl`, `.ndjson`) does: a file whose one line is a task may
be a dataset of one row or a one-task file, which differ in the id; a file with nothing but a broken line may be a
dataset with a bad record or no dataset at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from layertap.dataset.formats import describe, is_row
from layertap.dataset.strict_json import may_go_on, parse
from layertap.errors import BadTaskError

_HEAD_LINES = 3
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Lines:
    """A file with one JSON value a line; blank lines are still in it, so that lines can be counted."""

    lines: Iterator[bytes]


@dataclass(frozen=True)
class Whole:
    """A file that is one JSON value."""

    value: object


@dataclass(frozen=True)
class Refused:
    """A file that is neither, or a value that holds no tasks. `reason` follows the file's name in a message."""

    reason: str


def content_of(lines: Iterator[bytes], *, named_jsonl: bool) -> Lines | Whole | Refused:
    """Find out what a file holds, from its lines; `lines` is used up to the head, or wholly for a single value."""
    head = _Head.read(lines)
    if not head.rows:
        return Refused("is empty")
    everything = chain(head.lines, lines)
    if head.is_one_value() and not (named_jsonl and is_row(head.rows[0])):
        return whole(everything)
    return Lines(everything) if head.has_records(named_jsonl) else Refused(head.complaint())


def whole(lines: Iterator[bytes]) -> Whole | Refused:
    """The one JSON value that all lines together are."""
    data = b"".join(lines)
    if not data.strip():
        return Refused("is empty")
    try:
        return Whole(parse(data))
    except BadTaskError as error:
        return Refused(str(error))


@dataclass(frozen=True)
class _Head:
    lines: list[bytes]
    rows: list[object]  # each line that is not blank: its JSON value, or the BadTaskError that says why it has none
    ended: bool

    @classmethod
    def read(cls, lines: Iterator[bytes]) -> "_Head":
        head: list[bytes] = []
        rows: list[object] = []
        size = 0
        for line in lines:
            head.append(line)
            size += len(line)
            if line.strip():
                rows.append(_value_or_error(line))
            if len(rows) >= _HEAD_LINES and size >= _HEAD_BYTES:
                return cls(head, rows, ended=False)
        return cls(head, rows, ended=True)

    def is_one_value(self) -> bool:
        if not isinstance(self.rows[0], BadTaskError):
            return len(self.rows) == 1
        together = b"".join(self.lines)
        return isinstance(whole(iter([together])), Whole) if self.ended else may_go_on(together)

    def has_records(self, named_jsonl: bool) -> bool:
        # An object a line is all that a line-wise dataset can be: "[" opens a list, here one that is broken further on.
        if next(line for line in self.lines if line.strip()).lstrip().startswith(b"["):
            return False
        malformed = any(isinstance(row, BadTaskError) for row in self.rows)
        return any(is_row(row) for row in self.rows) or (named_jsonl and malformed)

    def complaint(self) -> str:
        if isinstance(self.rows[0], BadTaskError):
            joined = whole(iter([b"".join(self.lines)]))
            return joined.reason if isinstance(joined, Refused) else str(self.rows[0])
        return f"has one JSON value a line, but the first is {describe(self.rows[0])}, not a task or text"


def _value_or_error(line: bytes) -> object:
    try:
        return parse(line)
    except BadTaskError as error:
        return error
