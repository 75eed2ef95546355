"""Loops that round the values of a sample, compiled by numba: to 8 bits with scales, or to float16.

They give the bits that numpy gives in quantised.py and rounding.py, two to five times as fast (only
a NaN may have other digits). So no sum is added in another order here, unlike in compiled.py, which
says what numba is and costs.

Each loop over channels reads and writes few arrays. Otherwise the compiler cannot tell that they do
not overlap, and does one value at a time.
"""

import numpy as np
from numba import float32, int64, uint8, uint16, uint32

from layertap.core.sample import Activation
from layertap.shards.compiled import exactly, readable
from layertap.shards.quantised import DROPPED, EXPONENT, LEAST_EXPONENT, ROUNDER, SMALLEST_SCALE
from layertap.shards.scratch import Scratch

_SIGN, _MAGNITUDE = uint32(1 << 31), uint32((1 << 31) - 1)
_LEAST_SCALE = float32(SMALLEST_SCALE)
_SPACED_EVENLY = float32(2.0**14)
"""Its last digit is 2^-9, the distance of the codes of float8 below 2^-6."""
_BITS_OF_IT = uint32((127 + 14) << 23)
_REBIASED = uint32((127 - 7) << 3)

_HALF_INFINITY, _HALF_LARGEST, _HALF_LEAST = uint32(0x7C00), uint32((127 + 16) << 23), uint32((127 - 14) << 23)
_HALF_REBIASED = uint32((127 - 15) << 10)

_SCRATCH = Scratch()


def to_codes(
    values: np.ndarray, codes: np.ndarray, scales: np.ndarray, largest: float, largest_scale: np.float32
) -> None:
    """Write codes, and a scale for each token, and replace the values by those that a reader gets.

    `values` is float32 [tokens, width]; `codes` has 8 bits. quantised.py says what is written.
    """
    _to_codes(values, codes.view(np.uint8), scales, np.float32(largest), largest_scale, codes.dtype == np.int8)


def to_float16(activation: Activation, rounded: np.ndarray) -> bool:
    """Round float32 or bfloat16 into `rounded`; return whether a finite value became infinite."""
    (wide,) = _SCRATCH.rows(activation.shape[1], len(activation))
    np.copyto(wide, activation)
    rows = readable(wide)
    overflown: int = _to_float16(rows, rows.view(np.uint32), rounded.view(np.uint16))
    return overflown > 0


@exactly
def _largest_magnitude(bits: np.ndarray, token: int) -> np.uint32:
    """Return its bits. Those of a NaN are larger than those of infinity."""
    most = uint32(0)
    for channel in range(bits.shape[1]):
        most = max(most, uint32(bits[token, channel] & _MAGNITUDE))
    return most


@exactly
def _to_int8(values: np.ndarray, token: int, codes: np.ndarray) -> None:
    for channel in range(values.shape[1]):
        rounded = np.rint(values[token, channel])
        values[token, channel] = rounded
        codes[token, channel] = uint8(int64(rounded))


@exactly
def _to_float8(
    values: np.ndarray, bits: np.ndarray, token: int, codes: np.ndarray, rounders: np.ndarray, signs: np.ndarray
) -> None:
    """Round to 4 digits by adding and subtracting a number, and code what remains.

    `rounders` and `signs` are scratch memory [width].
    """
    rounder_bits = rounders.view(np.uint32)
    for channel in range(bits.shape[1]):
        rounder_bits[channel] = max(bits[token, channel] & EXPONENT, LEAST_EXPONENT) + ROUNDER
        signs[channel] = bits[token, channel] & _SIGN
    for channel in range(bits.shape[1]):
        rounded = (values[token, channel] + rounders[channel]) - rounders[channel]
        values[token, channel] = rounded
        rounders[channel] = abs(rounded) + _SPACED_EVENLY
    for channel in range(bits.shape[1]):
        magnitude = bits[token, channel] & _MAGNITUDE
        usual, small = (magnitude >> uint32(DROPPED)) - _REBIASED, rounder_bits[channel] - _BITS_OF_IT
        code = usual if magnitude >= LEAST_EXPONENT else small
        codes[token, channel] = uint8(code | (signs[channel] >> uint32(24)))
        bits[token, channel] = magnitude | signs[channel]  # the sum has made a negative zero positive


@exactly
def _to_codes(
    values: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    largest: np.float32,
    largest_scale: np.float32,
    of_int8: bool,
) -> None:
    rounders, signs = np.empty(values.shape[1], np.float32), np.empty(values.shape[1], np.uint32)
    bits, one = values.view(np.uint32), np.zeros(1, np.uint32)
    for token in range(len(scales)):
        one[0] = _largest_magnitude(bits, token)
        if one[0] >= EXPONENT:
            scales[token], codes[token], values[token] = float32(np.nan), 0, float32(np.nan)
            continue
        scale = min(max(one.view(np.float32)[0] / largest, _LEAST_SCALE), largest_scale)
        scales[token] = scale
        for channel in range(values.shape[1]):
            values[token, channel] /= scale
        if of_int8:
            _to_int8(values, token, codes)
        else:
            _to_float8(values, bits, token, codes, rounders, signs)
        for channel in range(values.shape[1]):
            values[token, channel] *= scale


@exactly
def _to_float16(values: np.ndarray, bits: np.ndarray, rounded: np.ndarray) -> int:
    """Return how many finite values became infinite.

    What is below the smallest normal float16 is rounded by adding a number to it.
    """
    sums, overflown = np.empty(values.shape[1], np.float32), 0
    sum_bits = sums.view(np.uint32)
    for token in range(len(values)):
        for channel in range(values.shape[1]):
            sums[channel] = abs(values[token, channel]) + float32(0.5)
        for channel in range(values.shape[1]):
            magnitude = bits[token, channel] & _MAGNITUDE
            odd = (magnitude >> uint32(13)) & uint32(1)
            usual = ((magnitude + uint32(0xFFF) + odd) >> uint32(13)) - _HALF_REBIASED
            digits = (magnitude >> uint32(13)) & uint32(0x3FF)
            nan = _HALF_INFINITY | max(digits, uint32(1))
            large = nan if magnitude > EXPONENT else _HALF_INFINITY
            small = sum_bits[channel] - uint32(0x3F000000)
            half = small if magnitude < _HALF_LEAST else (usual if magnitude < _HALF_LARGEST else large)
            overflown += 1 if half == _HALF_INFINITY and magnitude < EXPONENT else 0
            rounded[token, channel] = uint16(half | ((bits[token, channel] & _SIGN) >> uint32(16)))
    return overflown
