"""From computed values to those that a reader gets, with their norms and statistics.

Norms describe the values as stored: values are rounded first and measured afterwards. A value that
its dtype cannot hold is an error, and so is a NaN or an infinity, unless the run keeps those.
"""

from dataclasses import replace

import numpy as np

from layertap.core.columns import Norms
from layertap.core.sample import Activation, Sample
from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards.form import ShardFormat
from layertap.shards.measuring import LOOPED, measure_in_float32
from layertap.shards.quantised import is_quantised, quantise
from layertap.shards.statistics import TapStatistics


def measure_sample(
    sample: Sample, tap: Tap, form: ShardFormat, into: np.ndarray | None = None
) -> tuple[Activation, Norms, TapStatistics]:
    """Return what a reader gets of a sample at a tap: the values, their norms, their statistics.

    Quantised values are returned in float32. Others are returned as they are if the storage dtype
    holds them exactly. With `into`, an array of the storage dtype, they are returned in that dtype:
    values that need a conversion are written there. Raises StorageError where a finite value does
    not fit into float16, or for a NaN or an infinity that the run does not keep.
    """
    if is_quantised(form.dtype):
        values = quantise(sample.activations[tap], form.dtype, by_loops=form.by_loops).values
        return values, *measure_read(values, sample, tap, form)
    rounded = round_activation(sample, tap, form.dtype, into, by_loops=form.by_loops)
    widened = into if rounded.dtype != form.dtype else None
    measured = measure_read(rounded, sample, tap, form, widened)
    return rounded if widened is None else widened, *measured


def measure_read(
    values: Activation, sample: Sample, tap: Tap, form: ShardFormat, widened: np.ndarray | None = None
) -> tuple[Norms, TapStatistics]:
    """Measure the norms and statistics of values as they will be read."""
    statistics, norms = measure_in_float32(values, sample.sample_idx, widened, by_loops=form.by_loops)
    require_finite(sample, tap, norms, form)
    if statistics.count:
        positions = sample.columns["positions"]
        statistics = replace(statistics, max_position=int(positions[statistics.max_position]))
    return norms.astype(np.float32), statistics


def require_finite(sample: Sample, tap: Tap, norms: Norms, form: ShardFormat) -> None:
    """Raise StorageError for a NaN or an infinity that the run does not keep; the norms show it."""
    finite = np.isfinite(norms)
    if not form.keep_nonfinite and not finite.all():
        raise _nonfinite(sample, tap, sample.columns["positions"][~finite], form)


def round_activation(
    sample: Sample, tap: Tap, dtype: np.dtype, into: np.ndarray | None = None, *, by_loops: bool = False
) -> Activation:
    """Round the activation to values that `dtype` holds exactly, into that array if it is given.

    Raises StorageError where a finite value does not fit into float16.
    """
    activation = sample.activations[tap]
    if np.can_cast(activation.dtype, dtype):
        return activation
    rounded = np.empty(activation.shape, dtype) if into is None else into
    if round_values(activation, rounded, by_loops=by_loops):
        raise StorageError(
            f"{_place(sample, tap)}: a value is too large for float16 (65504); use --storage_dtype float32 or bfloat16"
        )
    return rounded


def round_values(activation: Activation, rounded: np.ndarray, *, by_loops: bool) -> bool:
    """Round into `rounded`, and return whether a finite value became an infinite float16."""
    is_float16 = rounded.dtype == np.float16
    if by_loops and is_float16 and activation.dtype in LOOPED:
        from layertap.shards import compiled_rounding

        return compiled_rounding.to_float16(activation, rounded)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN stays NaN
        np.copyto(rounded, activation, casting="unsafe")
        return bool(is_float16 and (np.isinf(rounded) & np.isfinite(activation)).any())


def _nonfinite(sample: Sample, tap: Tap, tokens: np.ndarray, form: ShardFormat) -> StorageError:
    """Return the error for the tokens at these positions, which have a NaN or an infinity."""
    kept = f"such tokens of {form.stored_as} as NaN" if is_quantised(form.dtype) else "such activations as they are"
    return StorageError(
        f"{_place(sample, tap)}, token {tokens[0]}: the activation has a NaN or an infinity, as have those of"
        f" {len(tokens)} of its {sample.tokens} tokens there. A sound model gives none: look for it in the weights."
        f" To store {kept}, and have them counted, pass --on_nonfinite keep"
    )


def _place(sample: Sample, tap: Tap) -> str:
    return f"task {sample.task_id}, sample {sample.sample_idx}, layer {tap.layer}, {tap.site}"
