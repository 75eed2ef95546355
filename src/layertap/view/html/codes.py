"""Numbers in two bytes, exact in the three significant digits that a page shows.

A code is a sign, an exponent of ten and a mantissa of 100 to 999. So the page prints exactly what
Python's `f"{value:.3g}"` prints. float16 takes as many bytes, but has fewer digits and a smaller
range. Zero, NaN and the two infinities have their own codes.

    0              zero, and numbers smaller than 1e-18
    1 to 64800     1 + sign + 2 * (mantissa - 100 + 900 * (exponent + 18))
    65533, 65534   minus infinity, infinity; also numbers from 1e18 on
    65535          NaN
"""

import numpy as np

NAN, INFINITY, MINUS_INFINITY = 65535, 65534, 65533
_LEAST, _MOST = -18, 17


def encode(values: np.ndarray) -> np.ndarray:
    """Return the code of each number; uint16, of the same shape."""
    wide = np.asarray(values, np.float64)
    finite = np.isfinite(wide) & (wide != 0)
    sizes = np.where(finite, np.abs(wide), 1.0)
    exponents = np.floor(np.log10(sizes)).astype(np.int64)
    mantissas = np.rint(sizes / 10.0 ** (exponents - 2)).astype(np.int64)
    over, under = mantissas >= 1000, mantissas < 100  # the logarithm or rounding was off by one
    exponents = exponents + over - under
    mantissas = np.rint(sizes / 10.0 ** (exponents - 2)).astype(np.int64)
    codes = 1 + (wide < 0) + 2 * (mantissas - 100 + 900 * (exponents - _LEAST))
    codes = np.where(finite & (exponents >= _LEAST), codes, 0)
    codes = np.where(
        (finite & (exponents > _MOST)) | np.isinf(wide), np.where(wide < 0, MINUS_INFINITY, INFINITY), codes
    )
    return np.where(np.isnan(wide), NAN, codes).astype(np.uint16)


def decode(codes: np.ndarray) -> np.ndarray:
    """Return the numbers that the page shows; float64."""
    number = codes.astype(np.int64) - 1
    exponents, mantissas = number // 2 // 900 + _LEAST, number // 2 % 900 + 100
    values = np.where(number % 2, -1.0, 1.0) * mantissas * 10.0 ** (exponents - 2)
    values = np.where(codes == 0, 0.0, values)
    values = np.where(codes == NAN, np.nan, values)
    return np.where(codes == INFINITY, np.inf, np.where(codes == MINUS_INFINITY, -np.inf, values))
