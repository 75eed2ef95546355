"""SAELens' folder of cached activations: a Hugging Face dataset as it is saved to disk.

`state.json` lists Arrow streams, which are mapped; a row is a context of tokens, `token_ids` and
for each hook an array [context, width]. Arrays are an extension type of the package `datasets`,
which need not be here: its storage is a list of lists, and its shape is in `dataset_info.json`.
Seen with sae-lens 6.54.12 and datasets 4 and 5. SAELens shuffles whole contexts, and their ids with
them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from layertap.compare.arrange import Stored
from layertap.errors import DumpError

STATE, INFO = "state.json", "dataset_info.json"


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / STATE).is_file() and (folder / INFO).is_file()


def open_saved_dataset(folder: Path) -> dict[str, Stored]:
    """Return its columns, with rows along the first axis; raises DumpError if it is damaged."""
    files, features = _read_json(folder)
    rows = [_rows(path) for path in files]
    shapes = {name: shape for name, feature in features.items() if (shape := _shape(feature)) is not None}
    return {
        name: Stored(name, dtype, (sum(rows), *shape), _reader(files, rows, name, dtype, shape))
        for name, (dtype, shape) in shapes.items()
    }


def _read_json(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
        features: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))["features"]
        features.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DumpError(f"{folder}: {STATE} and {INFO} are not those of a saved dataset: {error!r}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise DumpError(f"{folder}: {STATE} names {outside[0]!r}, which is not a file in the folder")
    return [folder / name for name in names], features


def _shape(feature: object) -> tuple[str, tuple[int, ...]] | None:
    """Return the dtype and shape of an item; None if it is not an array with one shape."""
    match feature:
        case {"_type": "Array2D" | "Array3D", "dtype": str(dtype), "shape": list(shape)}:
            return dtype, tuple(shape)
        case {"_type": "Sequence" | "List", "length": int(length), "feature": {"dtype": str(dtype)}} if length > 0:
            return dtype, (length,)
    return None


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            yield from stream
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DumpError(f"{path}: is not a whole Arrow stream: {error}") from error


def _rows(path: Path) -> int:
    return sum(batch.num_rows for batch in _batches(path))


def _reader(
    files: list[Path], rows: list[int], name: str, dtype: str, shape: tuple[int, ...]
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    def read(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[0].indices(sum(rows))
        items = list(_items(files, name, dtype, shape, begin, end))
        return np.stack([item[index[1:]] for item in items]) if items else np.zeros((0, *shape), dtype)

    return read


def _items(
    files: list[Path], name: str, dtype: str, shape: tuple[int, ...], begin: int, end: int
) -> Iterator[np.ndarray]:
    """Yield the items from `begin` to `end`, one at a time."""
    seen = 0
    for path in files:
        for batch in _batches(path):
            column = batch.column(name)
            column = getattr(column, "storage", column)
            for row in range(max(begin - seen, 0), min(end - seen, batch.num_rows)):
                yield _flat(column.slice(row, 1), dtype, shape, path, name)
            seen += batch.num_rows
            if seen >= end:
                return


def _flat(column: Any, dtype: str, shape: tuple[int, ...], path: Path, name: str) -> np.ndarray:  # noqa: ANN401
    import pyarrow

    while pyarrow.types.is_nested(column.type):
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if values.size != int(np.prod(shape)):
        raise DumpError(f"{path}: a row of {name} has {values.size} numbers, not {list(shape)}")
    return values.astype(dtype, copy=False).reshape(shape)
