"""Folders that the `datasets` library opens (`load_from_disk`), written with pyarrow alone.

Such a folder is Arrow streams, one for each shard here, and two JSON files that are written last:
`state.json`, which lists the streams, and `dataset_info.json`, which has the type of each column.
Without them nobody takes the folder for a dataset. Streams are not compressed, so `datasets` maps
them into memory.

A matrix for each row is the library's own type `Array2D`: lists of lists, with the name of an Arrow
extension type in the field. Plain lists of lists would be refused, because the type in
`dataset_info.json` is another. Lists count in 32 bits, so a record batch has less than 2^31 values;
ours have some 64 MiB. The JSON says `Sequence` where new versions of `datasets` write `List`: old
and new ones read that.

`datasets` itself is not used, since it would cost every installation its 20 dependencies.
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
    """A column with a matrix for each row; `rows` is None where they differ in length."""

    rows: int | None
    width: int
    dtype: np.dtype


@dataclass(frozen=True)
class Values:
    """A column with a list of numbers for each row; `length` is None where they differ."""

    length: int | None
    dtype: np.dtype


@dataclass(frozen=True)
class Single:
    """A column with a number or, where `dtype` is None, a word for each row."""

    dtype: np.dtype | None


Column = Matrix | Values | Single


def schema(columns: Mapping[str, Column]) -> Arrow:
    """The Arrow schema of such columns, as `datasets` writes it."""
    described = dump_json({"info": {"features": features(columns)}})
    return pa.schema([_field(name, column) for name, column in columns.items()], {"huggingface": described})


def features(columns: Mapping[str, Column]) -> dict[str, Any]:
    """The columns in the words of `dataset_info.json`."""
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
    """All numbers of an array as one of Arrow, without a copy."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.Array.from_buffers(_number(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def words(values: Sequence[str]) -> Arrow:
    """Words as a column."""
    return pa.array(values, pa.string())


def lists(values: Arrow, lengths: np.ndarray) -> Arrow:
    """Lists of these lengths."""
    return pa.ListArray.from_arrays(numbers(_offsets(lengths)), values)


def matrices(values: np.ndarray, lengths: np.ndarray) -> Arrow:
    """Of [tokens, width], a matrix for each length."""
    tokens, width = values.shape
    return lists(lists(numbers(values), np.full(tokens, width)), lengths)


def fixed_lists(values: np.ndarray) -> Arrow:
    """Of [rows, length], a list for each row."""
    return pa.FixedSizeListArray.from_arrays(numbers(values), values.shape[1])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class _Sink(io.RawIOBase):
    """An open file, as pyarrow wants one."""

    def __init__(self, sink: Checksummed) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Arrow) -> int:
        return self._sink.write(data)


def write_stream(path: Path, own: Arrow, batches: Iterable[Sequence[Arrow]]) -> None:
    """Write record batches, each given as its columns; the file is whole or not there.

    Raises StorageError.
    """
    with atomic_write(path) as sink, pa.ipc.new_stream(_Sink(sink), own) as stream:
        for columns in batches:
            stream.write_batch(pa.record_batch(columns, schema=own))


def read_stream(path: Path) -> Generator[Mapping[str, Arrow]]:
    """The columns of each record batch, in memory of their own; raises DamageError where it is no
    such stream.
    """
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                yield {name: _plain(batch.column(name)) for name in batch.schema.names}
    except (OSError, pa.ArrowInvalid) as error:
        raise DamageError(f"{path}: is no Arrow stream that ends well: {error}") from error


def _plain(column: Arrow) -> Arrow:
    """The lists themselves, where `datasets` was imported and has registered its type."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def flat(column: Arrow) -> np.ndarray:
    """All numbers of a column, whatever its lists."""
    while not pa.types.is_primitive(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def lengths_of(column: Arrow) -> np.ndarray:
    """The length of each list of a column; int64."""
    return column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def write_index(folder: Path, columns: Mapping[str, Column], files: Sequence[str], fingerprint: str) -> None:
    """Write the two JSON files, that of the list last."""
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
