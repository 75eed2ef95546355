"""Convert activations to the dtype of an export, and measure the loss.

Widening is exact (bfloat16 or float16 to float32). If precision is lost, the loss is measured on
every written token: ‖written - stored‖ / ‖stored‖, the measure of a run's own certificate
(docs/formats.md). A finite value that the new dtype cannot hold stops the export, because an
infinity would spoil every mean of a trainer. NaNs and infinities that the run kept are unchanged.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from layertap.core.taps import Tap
from layertap.errors import InputError

_BITS: Mapping[str, tuple[int, int]] = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}
"""Bits of the exponent and the mantissa."""


def is_exact(stored: str, written: str) -> bool:
    """Return whether `written` holds every value of `stored`."""
    return all(own <= there for own, there in zip(_BITS[stored], _BITS[written], strict=True))


def convert(values: np.ndarray, dtype: np.dtype, tap: Tap) -> np.ndarray:
    """Convert `values` to `dtype`; raises InputError for a finite value that it cannot hold."""
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
            f" ({_largest(written.dtype):g}); give --dtype float32, or leave such tokens out with"
            " --exclude sink"
        )


def _largest(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def worst_error(values: np.ndarray, written: np.ndarray) -> float:
    """Return the largest ‖written - stored‖ / ‖stored‖ of a token.

    Tokens that are zero or not finite do not count.
    """
    if is_exact(values.dtype.name, written.dtype.name) or not len(values):
        return 0.0
    stored = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        difference = np.linalg.norm(written.astype(np.float32) - stored, axis=1)
        norms = np.linalg.norm(stored, axis=1)
        errors = difference[norms > 0] / norms[norms > 0]
    return float(errors[np.isfinite(errors)].max(initial=0.0))
