"""Activations in 8 bits: a code for each value, and a scale for each token.

A value is read as its code times the scale of its token. The scale is the largest magnitude of the
token divided by the largest number of the dtype: 448 of float8_e4m3, 127 of int8. So a massive
activation costs its own token digits, and no other. A scale a tap would cost all tokens theirs: the
first token of these models is a thousand times as long as the others.

A quotient is rounded to the nearest code, and to the even one of two. Quotient, scale and product
are float32. No scale is smaller than the smallest normal float32, so a token of zeros needs no rule
of its own: its scale is that number, its codes are 0. None is so large that the largest code times
it is infinite. A token that has a NaN or an infinity has the scale NaN and codes of 0: all of it
reads as NaN.

`ml_dtypes` takes 7 ns to round a value to float8, one after the other. Here it is 2.8 ns with its
scale, in steps that numpy does many at a time, by blocks that stay in a core's cache. A large
number of the value's own exponent, added and subtracted, rounds it to 4 digits; a table of the 12
bits that are left gives the code. The product with the scale, of which norms and statistics are
taken, comes with it.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from layertap.core.sample import Activation

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
"""What safetensors calls F8_E4M3, and torch float8_e4m3fn."""
LARGEST = {FLOAT8: 448.0, np.dtype(np.int8): 127.0}
"""The largest number of each dtype of codes."""
SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)

_NAMES = {FLOAT8: "float8_e4m3"}
_BLOCK_BYTES = 1 << 18
"""Of float32: three such blocks are in use at a time."""
_EXPONENT = np.uint32(0x7F800000)
_LEAST_EXPONENT = np.uint32((127 - 6) << 23)
"""Of 2^-6, below which the codes of float8 are evenly spaced."""
_ROUNDER = np.uint32((20 << 23) + (1 << 22))
"""Added to the bits of 2^e gives 1.5 * 2^(e + 20), whose last digit is 2^(e - 3)."""
_DROPPED = 20
"""Bits of a float32 that are 0 in all numbers of float8."""


def _codes_by_leading_bits() -> np.ndarray:
    numbers = (np.arange(1 << (32 - _DROPPED), dtype=np.uint32) << _DROPPED).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return numbers.astype(FLOAT8).view(np.uint8)


_CODES = _codes_by_leading_bits()
_NUMBERS = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Quantised:
    """An activation in 8 bits."""

    codes: np.ndarray
    """[tokens, width]"""
    scales: np.ndarray
    """float32 [tokens]"""
    values: np.ndarray
    """As what they are read: float32 [tokens, width]."""


def is_quantised(dtype: np.dtype) -> bool:
    """Whether it is one of codes, which are read by their scales."""
    return dtype in LARGEST


def dtype_name(dtype: np.dtype) -> str:
    """As `--storage_dtype` and the manifest call it."""
    return _NAMES.get(dtype, dtype.name)


def read_as(stored: str) -> str:
    """As what activations are read that are stored in the dtype of this name."""
    return "float32" if stored in map(dtype_name, LARGEST) else stored


def quantise(activation: Activation, dtype: np.dtype) -> Quantised:
    """The activation as codes of `dtype`; whether it is finite, its norms tell."""
    tokens, width = activation.shape
    codes, scales = np.empty(activation.shape, dtype), np.empty(tokens, np.float32)
    values = np.empty(activation.shape, np.float32)
    rows = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    to_codes = _to_float8 if dtype == FLOAT8 else _to_int8
    with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite
        for begin in range(0, tokens, rows):
            span = slice(begin, begin + rows)
            block = values[span]
            np.copyto(block, activation[span], casting="same_kind")
            scales[span] = _scales(block, LARGEST[dtype])
            block /= scales[span, None]
            block[np.isnan(scales[span])] = 0
            to_codes(block, codes[span])
            block *= scales[span, None]
    return Quantised(codes, scales, values)


def _scales(block: np.ndarray, largest: float) -> np.ndarray:
    most = np.abs(block).max(axis=1, initial=0)
    highest = np.nextafter(np.float32(np.finfo(np.float32).max / largest), np.float32(0))
    scales = np.clip(most / np.float32(largest), np.float32(SMALLEST_SCALE), highest)
    return np.where(np.isfinite(most), scales, np.float32(np.nan))


def _to_int8(block: np.ndarray, codes: np.ndarray) -> None:
    """Round the quotients where they are, and write their codes."""
    np.rint(block, out=block)
    np.copyto(codes, block, casting="unsafe")


def _to_float8(block: np.ndarray, codes: np.ndarray) -> None:
    """Round the quotients, which are at most the largest code or a last digit more, where they are,
    and write their codes.
    """
    bits = block.view(np.uint32)
    rounder = bits & _EXPONENT
    np.maximum(rounder, _LEAST_EXPONENT, out=rounder)
    rounder += _ROUNDER
    large = rounder.view(np.float32)
    negative_zeros = bits & np.uint32(1 << 31)
    block += large
    block -= large
    bits |= negative_zeros  # which the sum has made positive
    bits = np.right_shift(bits, _DROPPED, out=rounder)
    np.take(_CODES, bits, mode="clip", out=codes.view(np.uint8))


def fits(values: Activation, scales: np.ndarray, stored: str) -> np.ndarray:
    """Which tokens have values, read from the dtype of this name, such as their scales are made of:
    bool [tokens].
    """
    (largest,) = (it for dtype, it in LARGEST.items() if dtype_name(dtype) == stored)
    with np.errstate(invalid="ignore", over="ignore"):
        most, expected = np.abs(values).max(axis=1, initial=0), np.float32(largest) * scales
        of_scale = (most == expected) & (scales > SMALLEST_SCALE)
        return of_scale | ((most <= expected) & (scales == SMALLEST_SCALE)) | (np.isnan(most) & np.isnan(scales))


def dequantise(codes: np.ndarray, scales: np.ndarray) -> Activation:
    """The values that codes and scales stand for, in memory of their own."""
    is_float8 = codes.dtype == FLOAT8
    values = np.take(_NUMBERS, codes.view(np.uint8), mode="clip") if is_float8 else codes.astype(np.float32)
    with np.errstate(invalid="ignore"):
        values *= scales[:, None]
    return values
