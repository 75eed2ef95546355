"""Loops over the values of a sample, compiled by numba: norms and sums in one pass.

numpy takes five passes for this, and gives the interpreter back after each. Two threads then wait
for it at half of their passes, and sixteen are slower than two. A compiled loop needs the
interpreter once a sample, and takes half of numpy's time a value or less.

numba is optional: the extra `fast`, and a part of `gpu` and `tpu`. It brings LLVM, 200 MB, and
supports a new Python some months late. measuring.py does the same with numpy. Both agree with the
exact numbers within a millionth, which is what `verify` allows. So you can resume a run without
numba that began with it.

Each process compiles for its processor what it needs, in two seconds for bfloat16. numba could keep
the result in a folder. Then a damaged file there would end every run, and a shared folder might
hold code for another processor. Sums may be added in any order (`fastmath`), which is what makes
loops fast. NaN and infinities stay what they are, since callers find them in the squared norms.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numba import float32, float64, njit, uint32

from layertap.core.sample import Activation

_GROUP = 16
"""How many tokens are summed in float32. The sums of those are added in float64."""
_RUN = 2048
"""How many channels' squares are summed in float32."""
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_HALF_INFINITY, _HALF_SIGN = uint32(0x7C00), uint32(0x8000)
_INFINITE_EXPONENT, _TO_SINGLE = uint32(0x70000000), float32(2.0**112)

Loop = TypeVar("Loop", bound=Callable[..., Any])


def in_any_order(loop: Loop) -> Loop:
    """Compile a loop that may add in any order."""
    return _compiled(loop, {"reassoc", "contract", "nsz"})


def exactly(loop: Loop) -> Loop:
    """Compile a loop that computes what is written."""
    return _compiled(loop, set())


def _compiled(loop: Loop, freedom: set[str]) -> Loop:
    made: Any = njit(nogil=True, error_model="numpy", fastmath=freedom or False)(loop)
    compiled: Loop = made
    return compiled


def sums(activation: Activation, pivot: np.ndarray, widened: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return squared norms [tokens], and each channel's sum and sum of squares around the pivot.

    All are float64. `activation` is float32, bfloat16 or float16; `pivot` is float32 [width].
    Values in 16 bits are written to `widened`, if it is given: float32 of the same shape.
    """
    tokens, width = activation.shape
    squares, totals, m2 = np.empty(tokens), np.zeros(width), np.zeros(width)
    rows = readable(activation)
    if rows.dtype == np.float32:
        _sum_singles(rows, pivot, squares, totals, m2)
    else:
        wide = np.empty((_GROUP, width), np.float32) if widened is None else widened
        is_bfloat16, keep = rows.dtype == _BFLOAT16, widened is not None
        _sum_halves(rows.view(np.uint16), is_bfloat16, wide, keep, pivot, squares, totals, m2)
    return squares, totals, m2


def readable(activation: Activation) -> Activation:
    """Return the rows in one piece and not writable, so that a loop gets one kind of array."""
    rows = np.ascontiguousarray(activation).view()
    rows.flags.writeable = False
    return rows


@in_any_order
def _widen_bfloat16(bits: np.ndarray, token: int, wide: np.ndarray, row: int) -> None:
    for channel in range(bits.shape[1]):
        wide[row, channel] = uint32(bits[token, channel]) << uint32(16)


@in_any_order
def _widen_float16(bits: np.ndarray, token: int, wide: np.ndarray, row: int) -> None:
    """Move the digits to their place, and let a product correct the exponent.

    The product also normalises what is below the smallest normal float16.
    """
    values = wide.view(np.float32)
    for channel in range(bits.shape[1]):
        magnitude = uint32(bits[token, channel]) & ~_HALF_SIGN
        more = _INFINITE_EXPONENT if magnitude >= _HALF_INFINITY else uint32(0)
        wide[row, channel] = magnitude << uint32(13) | more
    for channel in range(bits.shape[1]):
        values[row, channel] *= _TO_SINGLE
    for channel in range(bits.shape[1]):
        wide[row, channel] |= (uint32(bits[token, channel]) & _HALF_SIGN) << uint32(16)


@in_any_order
def _square(rows: np.ndarray, row: int) -> float:
    total = float64(0)
    for begin in range(0, rows.shape[1], _RUN):
        run = rows[row, begin : begin + _RUN]
        part: Any = float32(0)
        for channel in range(len(run)):
            part += run[channel] * run[channel]
        total += part
    return total


@in_any_order
def _add_four(rows: np.ndarray, row: int, pivot: np.ndarray, total: np.ndarray, m2: np.ndarray) -> None:
    """Add four tokens at a time: to load and store the sums costs more than to add."""
    for channel in range(rows.shape[1]):
        first = rows[row, channel] - pivot[channel]
        second = rows[row + 1, channel] - pivot[channel]
        third = rows[row + 2, channel] - pivot[channel]
        fourth = rows[row + 3, channel] - pivot[channel]
        total[channel] += (first + second) + (third + fourth)
        m2[channel] += (first * first + second * second) + (third * third + fourth * fourth)


@in_any_order
def _add_one(rows: np.ndarray, row: int, pivot: np.ndarray, total: np.ndarray, m2: np.ndarray) -> None:
    for channel in range(rows.shape[1]):
        shifted = rows[row, channel] - pivot[channel]
        total[channel] += shifted
        m2[channel] += shifted * shifted


@in_any_order
def _add_group(
    rows: np.ndarray,
    begin: int,
    end: int,
    pivot: np.ndarray,
    total: np.ndarray,
    m2: np.ndarray,
    totals: np.ndarray,
    all_m2: np.ndarray,
) -> None:
    """Add up these rows in float32, and add the sums to those in float64."""
    total[:] = 0
    m2[:] = 0
    fours = begin + (end - begin) // 4 * 4
    for row in range(begin, fours, 4):
        _add_four(rows, row, pivot, total, m2)
    for row in range(fours, end):
        _add_one(rows, row, pivot, total, m2)
    for channel in range(rows.shape[1]):
        totals[channel] += total[channel]
        all_m2[channel] += m2[channel]


@in_any_order
def _sum_singles(
    rows: np.ndarray, pivot: np.ndarray, squares: np.ndarray, totals: np.ndarray, all_m2: np.ndarray
) -> None:
    total, m2 = np.empty_like(pivot), np.empty_like(pivot)
    for begin in range(0, len(squares), _GROUP):
        end = min(begin + _GROUP, len(squares))
        for token in range(begin, end):
            squares[token] = _square(rows, token)
        _add_group(rows, begin, end, pivot, total, m2, totals, all_m2)


@in_any_order
def _sum_halves(
    bits: np.ndarray,
    is_bfloat16: bool,
    wide: np.ndarray,
    keep: bool,
    pivot: np.ndarray,
    squares: np.ndarray,
    totals: np.ndarray,
    all_m2: np.ndarray,
) -> None:
    """Widen a group of tokens, into the same rows each time unless the caller keeps them."""
    total, m2 = np.empty_like(pivot), np.empty_like(pivot)
    wide_bits = wide.view(np.uint32)
    for begin in range(0, len(squares), _GROUP):
        end = min(begin + _GROUP, len(squares))
        moved = 0 if keep else begin
        for token in range(begin, end):
            if is_bfloat16:
                _widen_bfloat16(bits, token, wide_bits, token - moved)
            else:
                _widen_float16(bits, token, wide_bits, token - moved)
            squares[token] = _square(wide, token - moved)
        _add_group(wide, begin - moved, end - moved, pivot, total, m2, totals, all_m2)
