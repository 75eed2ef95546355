"""Read records of a dataset on the Hugging Face Hub, or in a folder that `datasets` reads.  Rows
are streamed: nothing is downloaded beyond what is read. (A folder that `save_to_disk` wrote is
memory-mapped instead.) A row is read like a line of JSONL, with the same keys and the same
precedence of ids; columns.py says what a named column may hold.  The library tells us which files a
split has. If these are Parquet, as most are, we read them ourselves, file by file in its order. The
library reads ahead, so its memory grows with the file: 1 GB for 160,000 rows of 4 kB, where we need
a tenth, whatever the length.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layertap.core.extras import install_command
from layertap.core.far import explain
from layertap.core.records import Record
from layertap.dataset.columns import RawRecords, plain, record_of_row
from layertap.dataset.places import locate
from layertap.dataset.records import check_records
from layertap.dataset.tables import choose_columns, table_rows
from layertap.errors import BadTaskError, DatasetError, UsageError

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves


def read_hub_records(
    name: str, *, config: str | None = None, split: str = "train", column: str | None = None, max_tasks: int | None
) -> Iterator[Record]:
    """Yield the records of dataset `name` (a Hub id, or a local folder), like `read_records`.

    Raises UsageError if the `datasets` library or the column is missing, DatasetError if the
    dataset cannot be opened or read.
    """
    shown = f"{name} split {split}" if config is None else f"{name} ({config}) split {split}"
    return check_records(_raw(_rows(name, config, split, column, shown), column, shown), shown, max_tasks)


def _rows(name: str, config: str | None, split: str, column: str | None, shown: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise UsageError(f"--dataset_name needs the datasets library: {install_command('datasets')}") from error
    # A lost connection raises an error of the HTTP library below huggingface_hub.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    failures = (datasets.exceptions.DatasetsError, http_error, OSError, ValueError, KeyError)
    local = Path(name).expanduser()
    try:
        if any((local / saved).is_file() for saved in _SAVED):
            if config is not None:
                raise DatasetError(
                    f"{shown}: a dataset from save_to_disk has no configurations; leave out --dataset_config"
                )
            found = datasets.load_from_disk(str(local))
            if isinstance(found, datasets.DatasetDict):
                yield from found[split]
            else:
                _require_no_other(split, found.split, shown)
                yield from found
        else:
            files = datasets.load_dataset_builder(name, config).config.data_files or {}
            if split in files and all(str(file).endswith(".parquet") for file in files[split]):
                yield from _rows_of_tables(list(map(str, files[split])), column)
                return
            streamed = datasets.load_dataset(name, config, split=split, streaming=True)
            if streamed.column_names is not None:  # other columns may be images, which are slow to decode
                streamed = streamed.select_columns(choose_columns(streamed.column_names, column, shown))
            yield from streamed
    except BadTaskError as error:
        raise DatasetError(f"{shown}: {error}") from error
    except failures as error:
        refusal = None if local.exists() else explain(f"hf://{name}", error)
        reason = " ".join(str(error).split()) if refusal is None or refusal.kind == "absent" else refusal.reason
        raise DatasetError(f"{shown}: cannot be read: {reason}") from error


def _rows_of_tables(files: list[str], column: str | None) -> Iterator[dict[str, Any]]:
    for file in files:
        with locate(file).open() as opened:
            yield from table_rows(opened, column)


def _require_no_other(wanted: str, split: object, shown: str) -> None:
    """Refuse a split of a dataset saved without splits; "train", the default, means all of it."""
    if wanted not in ("train", str(split)):
        raise DatasetError(f"{shown}: was saved as one dataset without splits; leave out --dataset_split")


def _raw(rows: Iterable[dict[str, Any]], column: str | None, shown: str) -> RawRecords:
    for number, row in enumerate(rows, 1):
        if column is not None and column not in row:
            raise UsageError(f"--column_name {column}: {shown} has the columns {', '.join(row)}")
        yield record_of_row(f"{shown} row {number}", plain(row, column), column)
