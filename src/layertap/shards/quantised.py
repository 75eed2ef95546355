"""Activations in 8 bits: a code for each value, and a scale for each token.

A value is read as its code times the scale of its token. The scale is the largest magnitude in the
token divided by the largest number of the dtype: 448 for float8_e4m3, 127 for int8. So a massive
activation costs precision only in its own token. One scale for each tap would cost precision in all
tokens, because the first token of these models is a thousand times as long as the others.

A quotient is rounded to the nearest code, and in a tie to the even code. Quotient, scale and
product are float32. No scale is smaller than the smallest normal float32. So a token of zeros needs
no special rule: its scale is that number and its codes are 0. No scale is so large that it times
the largest code is infinite. A token with a NaN or an infinity gets the scale NaN and the codes 0,
so all of it reads as NaN.

`ml_dtypes` rounds values to float8 one by one, in 7 ns each. This module takes 2.8 ns, with the
scale: numpy does each step for many values at a time, by blocks that fit into a core's cache. The
loops of compiled_rounding.py take 0.4 ns.
Adding and subtracting a large number that depends on the value's exponent rounds it to 4 digits. A
table of the remaining 12 bits gives the code. The product with the scale, which norms and
statistics need, comes out of the same pass.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from layertap.core.sample import Activation

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
"""safetensors calls it F8_E4M3; torch calls it float8_e4m3fn."""
LARGEST = {FLOAT8: 448.0, np.dtype(np.int8): 127.0}
"""The largest number of each dtype of codes."""
SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)

_NAMES = {FLOAT8: "float8_e4m3"}
_BLOCK_BYTES = 1 << 20
"""The size of a block in float32. Three such blocks are in use at a time.

With shorter ones two threads wait for the interpreter most of the time (docs/LOG.md).
"""
EXPONENT = np.uint32(0x7F800000)
LEAST_EXPONENT = np.uint32((127 - 6) << 23)
"""The exponent of 2^-6, below which the codes of float8 are evenly spaced."""
ROUNDER = np.uint32((20 << 23) + (1 << 22))
"""Added to the bits of 2^e, it gives 1.5 * 2^(e + 20), whose last digit is 2^(e - 3)."""
DROPPED = 20
"""How many bits of a float32 are 0 in all numbers of float8."""


def _codes_by_leading_bits() -> np.ndarray:
    numbers = (np.arange(1 << (32 - DROPPED), dtype=np.uint32) << DROPPED).view(np.float32)
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
    """The values that a reader gets: float32 [tokens, width]."""


def is_quantised(dtype: np.dtype) -> bool:
    """Return whether values of this dtype are codes, which need scales to be read."""
    return dtype in LARGEST


def dtype_name(dtype: np.dtype) -> str:
    """Return the name of the dtype in `--storage_dtype` and the manifest."""
    return _NAMES.get(dtype, dtype.name)


def read_as(stored: str) -> str:
    """Return the dtype that readers get for activations stored in the dtype of this name."""
    return "float32" if stored in map(dtype_name, LARGEST) else stored


def quantise(
    activation: Activation,
    dtype: np.dtype,
    *,
    by_loops: bool = False,
    codes: np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> Quantised:
    """Return the activation as codes of `dtype`. The norms show whether it is finite.

    Codes and values are written into the arrays that are given. `by_loops`: whether the loops of
    compiled_rounding.py do this, which need numba. They give the same codes, scales and values.
    """
    made = Quantised(
        codes=np.empty(activation.shape, dtype) if codes is None else codes,
        scales=np.empty(len(activation), np.float32),
        values=np.empty(activation.shape, np.float32) if values is None else values,
    )
    if by_loops:
        from layertap.shards import compiled_rounding

        np.copyto(made.values, activation, casting="same_kind")
        largest = LARGEST[dtype]
        compiled_rounding.to_codes(made.values, made.codes, made.scales, largest, _largest_scale(largest))
    else:
        _quantise_blocks(activation, made)
    return made


def _quantise_blocks(activation: Activation, made: Quantised) -> None:
    tokens, width = activation.shape
    rows = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    largest = LARGEST[made.codes.dtype]
    to_codes = _to_float8 if made.codes.dtype == FLOAT8 else _to_int8
    with np.errstate(invalid="ignore", over="ignore"):  # from values that are not finite
        for begin in range(0, tokens, rows):
            span = slice(begin, begin + rows)
            block, scales = made.values[span], made.scales[span]
            np.copyto(block, activation[span], casting="same_kind")
            scales[:] = _scales(block, largest)
            block /= scales[:, None]
            block[np.isnan(scales)] = 0
            to_codes(block, made.codes[span])
            block *= scales[:, None]


def _scales(block: np.ndarray, largest: float) -> np.ndarray:
    most = np.abs(block).max(axis=1, initial=0)
    scales = np.clip(most / np.float32(largest), np.float32(SMALLEST_SCALE), _largest_scale(largest))
    return np.where(np.isfinite(most), scales, np.float32(np.nan))


def _largest_scale(largest: float) -> np.float32:
    """Return the largest scale whose product with the largest code is finite."""
    return np.nextafter(np.float32(np.finfo(np.float32).max / largest), np.float32(0))


def _to_int8(block: np.ndarray, codes: np.ndarray) -> None:
    """Round the quotients in place, and write their codes."""
    np.rint(block, out=block)
    np.copyto(codes, block, casting="unsafe")


def _to_float8(block: np.ndarray, codes: np.ndarray) -> None:
    """Round the quotients in place, and write their codes.

    No quotient exceeds the largest code by more than a last digit.
    """
    bits = block.view(np.uint32)
    rounder = bits & EXPONENT
    np.maximum(rounder, LEAST_EXPONENT, out=rounder)
    rounder += ROUNDER
    large = rounder.view(np.float32)
    negative_zeros = bits & np.uint32(1 << 31)
    block += large
    block -= large
    bits |= negative_zeros  # the sum has made them positive
    bits = np.right_shift(bits, DROPPED, out=rounder)
    np.take(_CODES, bits, mode="clip", out=codes.view(np.uint8))


def fits(values: Activation, scales: np.ndarray, stored: str) -> np.ndarray:
    """Return which tokens have values that match their scales: bool [tokens].

    `values` were read from the dtype of this name.
    """
    (largest,) = (it for dtype, it in LARGEST.items() if dtype_name(dtype) == stored)
    with np.errstate(invalid="ignore", over="ignore"):
        most, expected = np.abs(values).max(axis=1, initial=0), np.float32(largest) * scales
        of_scale = (most == expected) & (scales > SMALLEST_SCALE)
        return of_scale | ((most <= expected) & (scales == SMALLEST_SCALE)) | (np.isnan(most) & np.isnan(scales))


def dequantise(codes: np.ndarray, scales: np.ndarray) -> Activation:
    """Return the values that codes and scales represent, in new memory."""
    is_float8 = codes.dtype == FLOAT8
    values = np.take(_NUMBERS, codes.view(np.uint8), mode="clip") if is_float8 else codes.astype(np.float32)
    with np.errstate(invalid="ignore"):
        values *= scales[:, None]
    return values
