"""Norms and statistics of stored values, in float32, by blocks that fit into a core's cache.

`statistics.measure` is exact. It works in float64 and takes 2 to 2.5 ns a value on one core, which
was most of the cost of a safetensors shard. Encoding uses this module instead: it takes 0.8 ns, or
0.2 to 0.4 ns in large shards where numba is installed (compiled.py). It makes float32 copies on the
way and leaves them for the caller to store (`widened`), so a value is converted once.

float32 loses precision where means are large, and some channels of these models have means of ten
thousand times their deviation. So a pivot is subtracted first: the mean of some tokens spread over
the sample. The sum of squares around the pivot exceeds the sum around the mean by
n (pivot - mean)^2, usually a sixteenth of it. Sums over `_GROUP` tokens are in float32; sums of
those are in float64. Norms come from sums of squares in float32, of the values without the pivot
subtracted. So norms, deviations, and means in units of either are within a millionth of the exact
ones. Norms are stored in float32 anyway. `verify` measures exactly and allows this difference.

What float32 cannot hold (a NaN, an infinity, squares beyond its range) is measured exactly. So are
float64 values, and a sample whose pivot turns out to be far from the mean. numpy lets other threads
run meanwhile, but wants the interpreter back after each of its passes.
"""

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np

from layertap.core.sample import Activation
from layertap.shards.scratch import Scratch
from layertap.shards.statistics import Norms, TapStatistics, measure

_BLOCK_BYTES = 2 << 20
"""The size of a block in float32. Two such blocks are in use at a time."""
_GROUP = 16
"""How many tokens are summed in float32."""
_PIVOT = 16
"""The pivot is the mean of so many tokens."""
_SMALLEST, _LARGEST = 1e-24, 1e36
"""Between these squared norms, neither a sum nor its terms leave the range of float32."""
_EXCESS = 3.0
"""How many times M2 the excess of the pivot may be before digits of M2 are lost."""
_SCRATCH = Scratch()
LOOPED = frozenset(map(np.dtype, ("float32", "bfloat16", "float16")))
"""The dtypes that the loops of compiled.py can read. numpy does the others."""
_DOT = 2048
"""How many channels' squares are summed in float32. At 10,000 BLAS would start its own threads."""


def measure_in_float32(
    activation: Activation, sample_idx: int, widened: np.ndarray | None = None, *, by_loops: bool = False
) -> tuple[TapStatistics, Norms]:
    """Return what `statistics.measure` returns, within a millionth.

    For an activation that is not float32, the values are written to `widened`, which is float32 of
    the same shape. `by_loops`: whether the loops of compiled.py do this, which need numba.
    """
    if activation.dtype == np.float64 or not activation.size:
        return measure(activation, sample_idx)  # size 0: there is nothing to widen
    with np.errstate(invalid="ignore", over="ignore"):  # such values are measured again below
        squares, mean, m2, excess = _sums(activation, widened, by_loops)
    in_range = _SMALLEST < squares.min() <= squares.max() < _LARGEST  # False where there is a NaN
    if not in_range or (excess > _EXCESS * m2).any():
        return measure(activation, sample_idx)
    norms = np.sqrt(squares)
    top = int(norms.argmax())
    statistics = TapStatistics(
        count=len(norms),
        mean=mean,
        m2=m2,
        mean_norm=float(norms.mean()),
        mean_square_norm=float(squares.mean()),
        max_norm=float(norms[top]),
        max_sample_idx=sample_idx,
        max_position=top,
    )
    return statistics, norms


def _sums(activation: Activation, widened: np.ndarray | None, by_loops: bool) -> tuple[np.ndarray, ...]:
    """Return, in float64, each token's squared norm and each channel's mean, M2 and excess.

    The excess is how much larger the sum of squares around the pivot is than M2.
    """
    pivot = _pivot(activation)
    if by_loops and activation.dtype in LOOPED:
        from layertap.shards import compiled

        squares, sums, squares_around = compiled.sums(activation, pivot, widened)
    else:
        squares, sums, squares_around = _sums_of_blocks(activation, pivot, widened)
    off = sums / len(activation)
    excess = len(activation) * off * off
    return squares, pivot + off, np.maximum(squares_around - excess, 0), excess


def _sums_of_blocks(
    activation: Activation, pivot: np.ndarray, widened: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squared norms, and each channel's sum and sum of squares around the pivot."""
    tokens, width = activation.shape
    rows = max(_BLOCK_BYTES // (4 * width) // _GROUP, 1) * _GROUP
    groups = -(-tokens // _GROUP)
    wide, shifted, sums, m2 = _SCRATCH.rows(width, rows, rows, groups, groups)
    squares = np.empty((-(-width // _DOT), tokens), np.float32)
    for begin in range(0, tokens, rows):
        span = slice(begin, min(begin + rows, tokens))
        count = span.stop - begin
        block = activation[span]
        if block.dtype != np.float32:
            into = wide[:count] if widened is None else widened[span]
            np.copyto(into, block)
            block = into
        for part, own in enumerate(squares):
            channels = block[:, part * _DOT : (part + 1) * _DOT]
            np.vecdot(channels, channels, out=own[span])
        _add_up(np.subtract(block, pivot, out=shifted[:count]), sums[begin // _GROUP :], m2[begin // _GROUP :])
    return squares.sum(axis=0, dtype=np.float64), sums.sum(axis=0, dtype=np.float64), m2.sum(axis=0, dtype=np.float64)


def _pivot(activation: Activation) -> np.ndarray:
    """Return the mean of some tokens, without the first, which may exceed all others together."""
    step = max(1, len(activation) // _PIVOT)
    return activation[step // 2 :: step].astype(np.float32).mean(axis=0, dtype=np.float32)


def _add_up(around: np.ndarray, sums: np.ndarray, m2: np.ndarray) -> None:
    """Write the sum and the sum of squares of each `_GROUP` of a block; the last may be shorter."""
    count = len(around) // _GROUP
    groups, rest = around[: count * _GROUP].reshape(-1, _GROUP, around.shape[1]), around[count * _GROUP :]
    np.add.reduce(groups, axis=1, out=sums[:count])
    np.einsum("gth,gth->gh", groups, groups, out=m2[:count])
    if len(rest):
        np.add.reduce(rest, axis=0, out=sums[count])
        np.einsum("th,th->h", rest, rest, out=m2[count])
