"""Write folders that the `datasets` library opens (`load_from_disk`), with pyarrow alone.

Such a folder has Arrow streams, here one per shard, and two JSON files that are written last:
`state.json`, which lists the streams, and `dataset_info.json`, which has the type of each column.
Without these files, the folder is not a dataset. Streams are not compressed, so `datasets` can map
them into memory.

A column of matrices has the library's own type `Array2D`: lists of lists, with the name of an Arrow
extension type in the field. Plain lists of lists would be refused, because they do not match the
type in `dataset_info.json`. Lists count in 32 bits, so a record batch has fewer than 2^31 values;
ours have about 64 MiB. The JSON says `Sequence`, which old and new versions of `datasets` read,
although new ones write `List`.

We do not use `datasets` itself, because every installation would then need its 20 dependencies.
"""

import io
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError
from layertap.objects.files import Checksummed, atomic_write

Arrow = Any
"""An object of pyarrow, which ships without types."""


@dataclass(frozen=True)
class Matrix:
    """A column with one matrix per row; `rows` is None if they differ in length."""

    rows: int | None
    width: int
    dtype: np.dtype


@dataclass(frozen=True)
class Values:
    """A column with one list of numbers per row; `length` is None if they differ."""

    length: int | None
    dtype: np.dtype


@dataclass(frozen=True)
class Single:
    """A column with one number per row, or one text if `dtype` is None."""

    dtype: np.dtype | None


Column = Matrix | Values | Single


def schema(columns: Mapping[str, Column]) -> Arrow:
    """Make the Arrow schema of such columns, as `datasets` writes it."""
    described = dump_json({"info": {"features": features(columns)}})
    return pa.schema([_field(name, column) for name, column in columns.items()], {"huggingface": described})


def features(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Describe the columns in the format of `dataset_info.json`."""
    return {name: _feature(column) for name, column in columns.items()}


def _feature(column: Column) -> dict[str, Any]:
    if isinstance(column, Matrix):
        return {"shape": [column.rows, column.width], "dtype": column.dtype.name, "_type": "Array2D"}
    if isinstance(column, Single):
        return {"dtype": "string" if column.dtype is None else column.dtype.name, "_type": "Value"}
    length = -1 if column.length is None else column.length
    return {"feature": {"dtype": column.dtype.name, "_type": "Value"}, "length": length, "_type": "Sequence"}


def _field(name: str, column: Column) -> Arrow:
    if isinstance(column, Matrix):
        told = dump_json([[column.rows, column.width], column.dtype.name])
        extension = {
            "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
            "ARROW:extension:metadata": told,
        }
        return pa.field(name, pa.list_(pa.list_(_number(column.dtype))), metadata=extension)
    if isinstance(column, Single):
        return pa.field(name, pa.string() if column.dtype is None else _number(column.dtype))
    length = -1 if column.length is None else column.length
    return pa.field(name, pa.list_(_number(column.dtype), length))


def _number(dtype: np.dtype) -> Arrow:
    return pa.from_numpy_dtype(dtype)


def numbers(values: np.ndarray) -> Arrow:
    """Convert all numbers of an array to an Arrow array, without a copy."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.Array.from_buffers(_number(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def words(values: Sequence[str]) -> Arrow:
    """Convert texts to a column."""
    return pa.array(values, pa.string())


def lists(values: Arrow, lengths: np.ndarray) -> Arrow:
    """Split values into lists of these lengths."""
    return pa.ListArray.from_arrays(numbers(_offsets(lengths)), values)


def matrices(values: np.ndarray, lengths: np.ndarray) -> Arrow:
    """Split [tokens, width] into matrices of these lengths."""
    tokens, width = values.shape
    return lists(lists(numbers(values), np.full(tokens, width)), lengths)


def fixed_lists(values: np.ndarray) -> Arrow:
    """Convert [rows, length] to one list per row."""
    return pa.FixedSizeListArray.from_arrays(numbers(values), values.shape[1])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class _Sink(io.RawIOBase):
    """An open file in the form that pyarrow needs."""

    def __init__(self, sink: Checksummed) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Arrow) -> int:
        return self._sink.write(data)


def write_stream(path: Path, own: Arrow, batches: Iterable[Sequence[Arrow]]) -> None:
    """Write record batches, each given as its columns; the file is complete or does not exist.

    Raises StorageError.
    """
    with atomic_write(path) as sink, pa.ipc.new_stream(_Sink(sink), own) as stream:
        for columns in batches:
            stream.write_batch(pa.record_batch(columns, schema=own))


def read_stream(path: Path) -> Generator[Mapping[str, Arrow]]:
    """Yield the columns of each record batch, copied into memory; DamageError if it is damaged."""
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                yield {name: _plain(batch.column(name)) for name in batch.schema.names}
    except (OSError, pa.ArrowInvalid) as error:
        raise DamageError(f"{path}: is not a complete Arrow stream: {error}") from error


def _plain(column: Arrow) -> Arrow:
    """Return the plain lists, also if `datasets` was imported and has registered its type."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def flat(column: Arrow) -> np.ndarray:
    """Return all numbers of a column, without its lists."""
    while not pa.types.is_primitive(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def lengths_of(column: Arrow) -> np.ndarray:
    """Return the length of each list of a column; int64."""
    return column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def write_index(folder: Path, columns: Mapping[str, Column], files: Sequence[str], fingerprint: str) -> None:
    """Write the two JSON files, the list of files last."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in (("dataset_info.json", {"features": features(columns)}), ("state.json", state)):
        with atomic_write(folder / name) as sink:
            sink.write(dump_json(content, indent=2).encode())
