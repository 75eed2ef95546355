"""Read arrays from numpy's files, only the requested part, without unpickling.

`.npy` files are mapped. Members of an `.npz` are streams: what comes before the requested part is
read and dropped, one item of the first axis at a time. numpy has no bfloat16, and stores it as two
untyped bytes (`V2`), which we read as bfloat16.
"""

import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from layertap.compare.arrange import Stored
from layertap.errors import DumpError

_NO_PICKLES = "holds Python objects, which only unpickling reads, and Layertap does not: save plain arrays"


def open_npy(path: Path) -> Stored:
    """Open the array of a `.npy` file; raises DumpError if it is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DumpError(f"{path}: {_reason(error)}") from error
    values = _as_numbers(array)
    return Stored(path.stem, str(values.dtype), values.shape, lambda index: np.array(values[index]))


def open_npz(path: Path) -> dict[str, Stored]:
    """Open the arrays of an `.npz` file by name; raises DumpError if it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name[: -len(".npy")]: _member(path, archive, name) for name in names}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise DumpError(f"{path}: is not a whole .npz file: {error}") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    with archive.open(name) as file:
        shape, fortran, dtype = _header(file, f"{path}: {name}")
    if fortran and len(shape) > 1:
        raise DumpError(f"{path}: {name} is stored by columns; save numpy.ascontiguousarray of it")
    shown = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype

    def read(index: tuple[slice, ...]) -> np.ndarray:
        begin, end, _ = index[0].indices(shape[0])
        size = prod(shape[1:]) * dtype.itemsize
        with zipfile.ZipFile(path) as opened, opened.open(name) as file:
            _header(file, str(path))
            for _ in range(begin):
                file.read(size)
            items = [np.frombuffer(file.read(size), shown).reshape(shape[1:])[index[1:]] for _ in range(begin, end)]
        return np.stack(items) if items else np.zeros((0, *shape[1:]), shown)[(slice(None), *index[1:])]

    return Stored(name[: -len(".npy")], str(shown), shape, read)


def _header(file: IO[bytes], shown: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, OSError, EOFError) as error:
        raise DumpError(f"{shown}: {_reason(error)}") from error
    if dtype.hasobject:
        raise DumpError(f"{shown}: {_NO_PICKLES}")
    return shape, fortran, dtype


def _as_numbers(array: np.ndarray) -> np.ndarray:
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _reason(error: Exception) -> str:
    return _NO_PICKLES if "allow_pickle" in str(error) else f"is not a whole .npy file: {error}"
