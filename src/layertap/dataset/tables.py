"""Read rows of Parquet tables in batches, and only the columns that we need.  However long a table
or one of its row groups is, only a batch of rows and a piece of each column are in memory.
"""

from collections.abc import Iterator

from layertap.dataset.columns import RawRecords, needed_columns, plain, record_of_row
from layertap.dataset.formats import RECORD_KEYS
from layertap.dataset.packing import damage_named
from layertap.dataset.places import Opened
from layertap.errors import BadTaskError, UsageError

_ROWS = 64
_PIECE_BYTES = 1 << 20


def table_records(opened: Opened, column: str | None) -> RawRecords:
    """Yield the records in a Parquet file's rows.

    Raises UsageError if it has no such column, BadTaskError, without the file's name, if it has no
    known column, and DatasetError if it is damaged.
    """
    for number, row in enumerate(table_rows(opened, column), 1):
        yield record_of_row(f"{opened.place} row {number}", plain(row, column), column)


def choose_columns(names: list[str], column: str | None, shown: str) -> list[str]:
    """Choose the columns of a table to read; raises like `table_records`."""
    if column is not None and column not in names:
        raise UsageError(f"--column_name {column}: {shown} has the columns {', '.join(names)}")
    chosen = [name for name in names if name in needed_columns(column)]
    if column is None and RECORD_KEYS.keys().isdisjoint(chosen):
        raise BadTaskError(
            f"has the columns {', '.join(names)}, and none of {', '.join(RECORD_KEYS)}: name the column with the data"
            " with --column_name"
        )
    return chosen


def table_rows(opened: Opened, column: str | None) -> Iterator[dict[str, object]]:
    """Yield the rows of a Parquet file, with the columns to read; raises as above."""
    import pyarrow.parquet

    with damage_named("Parquet", str(opened.place)):
        table = pyarrow.parquet.ParquetFile(opened.content.file, buffer_size=_PIECE_BYTES, pre_buffer=False)
        chosen = choose_columns(table.schema_arrow.names, column, str(opened.place))
        for batch in table.iter_batches(batch_size=_ROWS, columns=chosen, use_threads=False):
            yield from batch.to_pylist()
