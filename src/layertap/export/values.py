"""Activations in the dtype of an export, and what that does to them.

Widening is exact (bfloat16 or float16 to float32). Where precision is lost, how much is measured on
every token that is written: ‖written - stored‖ / ‖stored‖, the measure of a run's own certificate
(docs/formats.md). A finite value that the new dtype cannot hold stops the export: an infinity would
go into every mean that a trainer takes. NaN and infinities that a run was told to keep stay what
they are.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from layertap.core.taps import Tap
from layertap.errors import InputError

_BITS: Mapping[str, tuple[int, int]] = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}
"""Of the exponent and the mantissa."""


def is_exact(stored: str, written: str) -> bool:
    """Whether each value of the one dtype is one of the other."""
    return all(own <= there for own, there in zip(_BITS[stored], _BITS[written], strict=True))


def convert(values: np.ndarray, dtype: np.dtype, tap: Tap) -> np.ndarray:
    """`values` as `dtype`; raises InputError for a finite one that it cannot hold."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        written = values.astype(dtype)
    if not is_exact(values.dtype.name, dtype.name):
        _require_held(values, written, tap)
    return written


def _require_held(values: np.ndarray, written: np.ndarray, tap: Tap) -> None:
    lost = np.isinf(written) & np.isfinite(values)
    if lost.any():
        largest = float(np.abs(values[lost].astype(np.float64)).max())
        raise InputError(
            f"layer {tap.layer}, {tap.site}: has a value of {largest:g}, beyond what {written.dtype.name} holds"
            f" ({_largest(written.dtype):g}); give --dtype float32, or leave such tokens out by"
            " --exclude sink"
        )


def _largest(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def worst_error(values: np.ndarray, written: np.ndarray) -> float:
    """The largest ‖written - stored‖ / ‖stored‖ of a token; tokens that are zero or not finite do
    not count.
    """
    if is_exact(values.dtype.name, written.dtype.name) or not len(values):
        return 0.0
    stored = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        difference = np.linalg.norm(written.astype(np.float32) - stored, axis=1)
        norms = np.linalg.norm(stored, axis=1)
        errors = difference[norms > 0] / norms[norms > 0]
    return float(errors[np.isfinite(errors)].max(initial=0.0))
