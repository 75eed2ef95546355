"""Read tensors of a safetensors file, slice by slice."""

from pathlib import Path

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 from here on
import numpy as np
from safetensors import SafetensorError, safe_open

from layertap.compare.arrange import Stored
from layertap.errors import DumpError

_NAMES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def open_tensors(path: Path) -> dict[str, Stored]:
    """Open the tensors of a file by name; raises DumpError if it is not a safetensors file.

    A dtype that numpy lacks is listed under its name in safetensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return {name: _stored(path, name, view.get_dtype(), view.get_shape()) for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise DumpError(f"{path}: is not a whole safetensors file: {error}") from error


def _stored(path: Path, name: str, dtype: str, shape: list[int]) -> Stored:
    def read(index: tuple[slice, ...]) -> np.ndarray:
        # The library refuses an end beyond the last one, which numpy allows.
        within = tuple(slice(*cut.indices(size)[:2]) for cut, size in zip(index, shape, strict=True))
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(name)[within]
        except (SafetensorError, OSError, TypeError) as error:
            raise DumpError(f"{path}: {name} {dtype}{shape} cannot be read: {error}") from error

    return Stored(name, _NAMES.get(dtype, dtype), tuple(shape), read)
