"""Norms and statistics of what is stored, in float32, by blocks that stay in a core's cache.

`statistics.measure` is exact: all of it in float64, 2 to 2.5 ns a value of one core. It was most of
what a shard of safetensors cost. This is what encoding takes: 0.8 ns, and as float32 copies are
made on the way, they are left for whoever stores them (`widened`), so a value is converted once.

Large means are what float32 cannot bear: channels of these models have means of ten thousand times
their deviation. So a pivot, the mean of some tokens spread over the sample, is taken out first. The
sum of squares around it exceeds that around the mean by n (pivot - mean)^2, a sixteenth of it as a
rule. Of each `_GROUP` tokens sums are in float32, and all beyond in float64. Norms are sums of
squares in float32, of values as they are. So norms, deviations, and means in units of either are
within a millionth of the exact ones; norms are stored in float32 anyway. `verify` measures exactly,
and allows for that.

What float32 cannot hold (a NaN, an infinity, squares beyond its range) is measured exactly, as are
float64 and a sample whose pivot turns out to be far from the mean. numpy lets other threads run
meanwhile. A kernel in C or by numba would save perhaps half of the 0.8 ns; docs/decisions.md says
why there is none.
"""

import threading

import numpy as np

from layertap.core.sample import Activation
from layertap.shards.statistics import Norms, TapStatistics, measure

_BLOCK_BYTES = 2 << 20
"""Of float32: two such blocks are in use at a time."""
_GROUP = 16
"""Tokens whose sums are taken in float32."""
_PIVOT = 16
"""Tokens whose mean is the pivot."""
_SMALLEST, _LARGEST = 1e-24, 1e37
"""Squared norms between which neither their sum nor what it is made of leaves float32's range."""
_EXCESS = 3.0
"""How many times M2 the pivot may cost before digits of M2 are lost."""
_kept = threading.local()
_DOT = 2048
"""Channels whose squares are summed in float32. Of 10,000 the BLAS would start its own threads."""


def measure_in_float32(
    activation: Activation, sample_idx: int, widened: np.ndarray | None = None
) -> tuple[TapStatistics, Norms]:
    """What `statistics.measure` gives, within a millionth.

    `widened`, float32 of the same shape, gets the values, for an activation that is not float32.
    """
    if activation.dtype == np.float64 or not activation.size:
        return measure(activation, sample_idx)  # nothing of size 0 is to be widened
    with np.errstate(invalid="ignore", over="ignore"):  # what that touches is measured again below
        squares, mean, m2, excess = _sums(activation, widened)
    in_range = _SMALLEST < squares.min() <= squares.max() < _LARGEST  # no NaN is
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


def _sums(activation: Activation, widened: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """In float64: the squared norm of each token; of each channel its mean, its M2, and by how much
    the sum of squares around the pivot was more.
    """
    tokens, width = activation.shape
    pivot = _pivot(activation)
    rows = max(_BLOCK_BYTES // (4 * width) // _GROUP, 1) * _GROUP
    groups = -(-tokens // _GROUP)
    wide, shifted, sums, m2 = _scratch(width, rows, rows, groups, groups)
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
    off = sums.sum(axis=0, dtype=np.float64) / tokens
    excess = tokens * off * off
    m2_of_all = np.maximum(m2.sum(axis=0, dtype=np.float64) - excess, 0)
    return squares.sum(axis=0, dtype=np.float64), pivot + off, m2_of_all, excess


def _scratch(width: int, *rows: int) -> list[np.ndarray]:
    """Arrays of so many rows of float32, this thread's own, kept for its next call.

    To give memory back to the system stops all cores for a moment: with arrays of each call's own,
    two cores were slower than one.
    """
    if getattr(_kept, "values", np.empty(0)).size < sum(rows) * width:
        _kept.values = np.empty(sum(rows) * width, np.float32)
    ends = np.cumsum(rows)
    whole = _kept.values[: ends[-1] * width].reshape(-1, width)
    return np.split(whole, ends[:-1])


def _pivot(activation: Activation) -> np.ndarray:
    """The mean of some tokens, not of the first, which may be as large as all others together."""
    step = max(1, len(activation) // _PIVOT)
    return activation[step // 2 :: step].astype(np.float32).mean(axis=0, dtype=np.float32)


def _add_up(around: np.ndarray, sums: np.ndarray, m2: np.ndarray) -> None:
    """The sums and the sums of squares of each `_GROUP` of a block, the last of which may be
    shorter.
    """
    count = len(around) // _GROUP
    groups, rest = around[: count * _GROUP].reshape(-1, _GROUP, around.shape[1]), around[count * _GROUP :]
    np.add.reduce(groups, axis=1, out=sums[:count])
    np.einsum("gth,gth->gh", groups, groups, out=m2[:count])
    if len(rest):
        np.add.reduce(rest, axis=0, out=sums[count])
        np.einsum("th,th->h", rest, rest, out=m2[count])
