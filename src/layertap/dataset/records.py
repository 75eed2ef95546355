"""From a path to checked records, with ids and duplicates.  A record's id is the first of: its
file's stem or its key, if one of these names it; its own `task_id`, `id` or `uid`; `task_00000012`
(or `text_`, `chat_`, `tokens_`), with the record's index in the dataset, counted from 0. In a JSONL
file that is the row. Malformed records are counted too, so leaving them out does not change any
other record's id.  A list of pairs is a task with hundreds of examples (RE-ARC), so a malformed
pair is its own bad record, and the task keeps the others.  8-byte hashes of the ids find
duplicates. In Python, each costs 60 to 90 bytes of memory (82 MB for a million); an id made from a
number costs one byte. Two different ids with the same hash would be reported as duplicates: among
ten million ids the chance of any such pair is 3 in a million, and it would be reported, not silent.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType

from layertap.config.source import DatasetFormat
from layertap.core.records import BadTask, GoodRecord, Record
from layertap.dataset.columns import ID_KEYS, RawRecord, RawRecords
from layertap.dataset.conversations import conversation_from_row
from layertap.dataset.files import raw_records
from layertap.dataset.formats import RecordKind, refuse_unknown
from layertap.dataset.places import locate
from layertap.dataset.rows import document_from_row, sound_text, tokens_from_row
from layertap.dataset.tasks import sound_pairs, task_from_pairs, task_from_problem, task_from_splits
from layertap.errors import BadTaskError, DatasetError

_MADE_ID = re.compile(r"(task|text|chat|tokens)_(\d{8,12})", re.ASCII)
_MADE_KINDS = ("", "task", "text", "chat", "tokens")

_CHECKS: Mapping[RecordKind, Callable[[object, str], GoodRecord]] = {
    "task": task_from_splits,
    "problem": task_from_problem,
    "pairs": task_from_pairs,
    "chat": conversation_from_row,
    "tokens": tokens_from_row,
    "text": document_from_row,
    "unknown": refuse_unknown,
}


def read_records(
    path: str,
    *,
    dataset_format: DatasetFormat = "auto",
    column: str | None = None,
    max_tasks: int | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[Record]:
    """Yield the first `max_tasks` records of a dataset, good or bad, in order (None: all).

    `path` is a file or folder, local (`~` allowed) or any URL that fsspec serves; files may be
    packed. `DatasetFormat` lists the formats. `column` names the column with the records, if they
    are not whole rows; `options` go to fsspec. Nothing is opened before you ask for the first
    record. JSONL files are read line by line and folders file by file, so they may be larger than
    memory. A file that is a single JSON value is read whole.

    A malformed record is yielded as `BadTask` and reading continues; the caller decides whether to
    stop. Raises DatasetError if there is no dataset: nothing is there, it is empty, it cannot be
    read, is not JSON, or has no known format.
    """
    yield from check_records(raw_records(locate(path, options), dataset_format, column), path, max_tasks)


def check_records(raws: RawRecords, shown: str, max_tasks: int | None) -> Iterator[Record]:
    """Check records and give each its id; DatasetError, which names `shown`, if there are none."""
    count, ids = 0, _Ids()
    for raw in islice(raws, max_tasks):
        if isinstance(raw, BadTask):
            yield raw
        else:
            yield from _check(raw, count, ids)
        count += 1
    if count == 0 and max_tasks != 0:
        raise DatasetError(f"{shown}: holds no tasks; give a dataset with at least one")


def _check(raw: RawRecord, number: int, ids: "_Ids") -> Iterator[Record]:
    """Yield the record, valid or not; before it, a `BadTask` for each pair left out of it."""
    task_id = None
    try:
        task_id = given_id(raw)
        if task_id is None:
            task_id = ids.made(raw.kind if raw.kind in _MADE_KINDS else "task", number)
        else:
            ids.given(task_id)
        value, reasons = sound_pairs(raw.value) if raw.kind == "pairs" else (raw.value, [])
        yield from (BadTask(raw.where, task_id, reason) for reason in reasons)
        yield check_value(raw.kind, value, task_id)
    except BadTaskError as error:
        yield BadTask(raw.where, task_id, str(error))


def check_value(kind: RecordKind, value: object, task_id: str) -> GoodRecord:
    """Return the record of this kind in `value`; raises BadTaskError if it is not valid."""
    return _CHECKS[kind](value, task_id)


def given_id(raw: RawRecord) -> str | None:
    """Return the record's own id, or None; raises BadTaskError if the id is not valid."""
    if raw.task_id is not None:
        return _sound_id(raw.task_id, "its id")
    own = raw.value if isinstance(raw.value, dict) else {}
    key = next((key for key in ID_KEYS if key in own), None)
    return None if key is None else _sound_id(own[key], repr(key))


def _sound_id(value: object, where: str) -> str:
    return str(value) if type(value) is int else sound_text(value, where, "a text or whole number")


class _Ids:
    """The ids so far. No id may occur twice, whether given or made."""

    def __init__(self) -> None:
        self._given: set[int] = set()
        self._made = bytearray()  # for each record, which of _MADE_KINDS its id was made from

    def given(self, task_id: str) -> None:
        """Register a record's own id; raises BadTaskError if an earlier record has it."""
        digest = _hash(task_id)
        if digest in self._given or self._was_made(task_id):
            raise BadTaskError("an earlier record has the same id; keep one of them, or give them different ids")
        self._given.add(digest)

    def made(self, kind: str, number: int) -> str:
        """Make an id from the record's number; raises BadTaskError if an earlier record has it."""
        task_id = _made_id(kind, number)
        if self._given and _hash(task_id) in self._given:
            raise BadTaskError("has no id, and an earlier record uses the one made from its number; give it an id")
        self._made.extend(bytes(number - len(self._made)))
        self._made.append(_MADE_KINDS.index(kind))
        return task_id

    def _was_made(self, task_id: str) -> bool:
        match = _MADE_ID.fullmatch(task_id)
        if match is None or int(match[2]) >= len(self._made):
            return False
        number = int(match[2])
        return task_id == _made_id(_MADE_KINDS[self._made[number]], number)


def _made_id(kind: str, number: int) -> str:
    return f"{kind}_{number:08d}"


def _hash(task_id: str) -> int:
    return int.from_bytes(blake2b(task_id.encode("utf-8"), digest_size=8).digest(), "big")
