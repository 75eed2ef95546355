"""Records of a dataset on the Hugging Face Hub, or in a folder that `datasets` reads.

Rows are streamed: no more than one batch is in memory, and nothing is downloaded beyond what is
read. (A folder that `save_to_disk` wrote is memory-mapped instead.) A row is what a line of JSONL
would be, with the same keys and the same precedence of ids. With a column named, the record is that
column's value and the rest of the row gives its id:

    a text                             a document; or one of these, if the text is its JSON
    [[input, output], ...]             a BARC problem
    [{"input", "output"}, ...]         the pairs of one task (RE-ARC)
    {"train": [...], "test": [...]}    a task

`datasets` types are not JSON's: an absent key comes as None, and a list of objects may come as an
object of lists.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layertap.core.extras import install_command
from layertap.core.records import BadTask, Record
from layertap.dataset.files import RawRecord, RawRecords
from layertap.dataset.formats import file_kind, record_kind
from layertap.dataset.records import ID_KEYS, check_records
from layertap.dataset.rows import parse
from layertap.errors import BadTaskError, DatasetError, UsageError

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves


def read_hub_records(
    name: str, *, config: str | None = None, split: str = "train", column: str | None = None, max_tasks: int | None
) -> Iterator[Record]:
    """The records of dataset `name` (a Hub id, or a local folder), as `read_records` gives them.

    Raises UsageError where the `datasets` library is missing or there is no such column,
    DatasetError where the dataset cannot be opened or read.
    """
    shown = f"{name} split {split}" if config is None else f"{name} ({config}) split {split}"
    return check_records(_raw(_rows(name, config, split, shown), column, shown), shown, max_tasks)


def _rows(name: str, config: str | None, split: str, shown: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise UsageError(f"--dataset_name needs the datasets library: {install_command('datasets')}") from error
    # A lost connection comes as an error of the HTTP library below huggingface_hub.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    failures = (datasets.exceptions.DatasetsError, http_error, OSError, ValueError, KeyError)
    local = Path(name).expanduser()
    try:
        if any((local / saved).is_file() for saved in _SAVED):
            if config is not None:
                raise DatasetError(
                    f"{shown}: what save_to_disk wrote has no configurations; leave --dataset_config out"
                )
            found = datasets.load_from_disk(str(local))
            if isinstance(found, datasets.DatasetDict):
                yield from found[split]
            else:
                _require_no_other(split, found.split, shown)
                yield from found
        else:
            yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except failures as error:
        raise DatasetError(f"{shown}: cannot be read: {error}") from error


def _require_no_other(wanted: str, split: object, shown: str) -> None:
    """Refuse a split of a dataset saved without splits; "train", the default, means all of it."""
    if wanted not in ("train", str(split)):
        raise DatasetError(f"{shown}: was saved as one dataset without splits; leave --dataset_split out")


def _raw(rows: Iterable[dict[str, Any]], column: str | None, shown: str) -> RawRecords:
    for number, row in enumerate(rows, 1):
        where = f"{shown} row {number}"
        value = _plain({key: entry for key, entry in row.items() if entry is not None})
        if column is None:
            yield RawRecord(where, record_kind(value), value, None)
            continue
        if column not in row:
            raise UsageError(f"--column_name {column}: {shown} has the columns {', '.join(row)}")
        yield _from_column(where, value, column)


def _from_column(where: str, row: dict[str, Any], column: str) -> RawRecord | BadTask:
    """The record in one column, and its id from another."""
    if column not in row:
        return BadTask(where, None, f"its column {column!r} is null")
    record = _record_of(row[column])
    ids = {key: row[key] for key in ID_KEYS if key in row and key != column}
    if isinstance(record, dict):
        return RawRecord(where, record_kind(record), {**ids, **record}, None)
    return RawRecord(where, "pairs", record, next(iter(ids.values()), None))


def _record_of(value: object) -> object:
    """What a column's value is: an object that is a record, or a list of {input, output}."""
    if isinstance(value, str):
        return _json_record(value) or {"text": value}
    return {"examples": value} if isinstance(value, list) and all(isinstance(it, list) for it in value) else value


def _json_record(text: str) -> object | None:
    """The record whose JSON `text` is; None for plain text, among it JSON that is no record."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = parse(text.encode("utf-8", "surrogatepass"))
    except BadTaskError:
        return None
    if isinstance(value, list) and value and all(isinstance(it, list) and len(it) == 2 for it in value):
        return {"examples": value}
    return value if file_kind(value) in ("task", "problem", "pairs") else None


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """`value` with lists of objects where the library has an object of lists."""
    if isinstance(value, dict):
        columns = {key: _plain(entry) for key, entry in value.items() if entry is not None}
        if columns and columns.keys() <= {"input", "output"} and all(map(_is_column, columns.values())):
            return [dict(zip(columns, pair, strict=True)) for pair in zip(*columns.values(), strict=True)]
        return columns
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _is_column(value: object) -> bool:
    """Whether a side of pairs is a list of grids, not one grid."""
    return isinstance(value, list) and _depth(value) >= 3


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth
