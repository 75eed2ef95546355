"""Tensors in safetensors files, read slice by slice."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes  # noqa: F401  # registers bfloat16 with numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from layertap.errors import ModelError

READABLE = ("BF16", "F16", "F32")
"""What safetensors calls the dtypes that weights may have."""


@runtime_checkable
class Readable(Protocol):
    """A source of weights: a stored tensor, or one that an adapter changes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in torch: matrices are [outputs, inputs]."""

    def read(self, *index: slice) -> np.ndarray:
        """The part that `index` selects."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of an open safetensors file; nothing is read before `read`."""

    name: str
    path: Path
    _view: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored: in torch, matrices are [outputs, inputs]."""
        return tuple(self._view.get_shape())

    @property
    def dtype(self) -> str:
        """As safetensors writes it, such as "BF16"."""
        return str(self._view.get_dtype())

    def read(self, *index: slice) -> np.ndarray:
        """The part that `index` selects, as stored; raises ModelError if there is no such part."""
        try:
            return self._view[index]
        except (SafetensorError, TypeError) as error:
            raise ModelError(
                f"{self.path}: {self.name} {self.dtype}{list(self.shape)} cannot be read: {error}"
            ) from error


def open_safetensors(path: Path) -> safe_open:
    """The open file; raises ModelError if it is not whole safetensors."""
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        if path.exists() and not os.access(path, os.R_OK):
            raise ModelError(f"{path}: this user may not read that file; change its permissions") from error
        raise ModelError(
            f"{path}: is not a whole safetensors file ({error}); fetch it again, with `git lfs pull` if it came by git"
        ) from error


def names_in(path: Path) -> list[str]:
    """The names of all tensors of a file; raises ModelError as `open_safetensors` does."""
    with open_safetensors(path) as file:
        return list(file.keys())
