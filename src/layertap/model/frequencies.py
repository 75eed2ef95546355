"""The inverse frequencies of rotary embeddings, on the host, bit for bit as in transformers.

transformers computes `1 / theta ** (arange(0, head_dim, 2) / head_dim)` in float32 with torch, and
models are trained with the result. One last bit matters: position 8,000 multiplies it, and the
angle is then off by up to 5e-4. float32 powers differ between libraries: XLA's, numpy's and the
correctly rounded ones all differ from torch's.

torch computes powers in vectors with SLEEF's `powf` (Shibata and Petrogalli 2020, arXiv
2001.09258): its error is one last bit at most, and its bits are the same on every processor that
multiplies and adds in one rounding. `_power` takes the same steps: a logarithm in two floats (a
value and its rounding error), times the exponent, and an exponential. Values that do not fill a
vector go through the C library's `powf` instead. torch fills vectors by 32 on processors with
AVX512, by 16 with AVX2. Head sizes that are multiples of 64 (all of Qwen's) have the same bits on
both; for others we do as AVX512 does.

We do not use torch itself, because we do not depend on it. numpy only, no JAX.
"""

import math

import numpy as np
from jaxtyping import Float32

from layertap.model.config import Rope

Floats = Float32[np.ndarray, "..."] | np.float32
Double = tuple[Floats, Floats]  # a value and a correction below its last bit; the sum of both is meant

_TOGETHER = 32  # two vectors of AVX512

# SLEEF's constants: the polynomials of 2 atanh and exp, and ln 2 in parts whose products with
# integers are exact.
_ATANH = (0.2403203547, 0.2851126790, 0.4000079930)
_ATANH_LAST = (np.float32(0.6666666269), np.float32(3.691838613e-09))
_EXP = (0.001363246469, 0.008365969174, 0.04167108238, 0.1666655242, 0.4999998510)
_LN2 = (np.float32(0.6931471825), np.float32(-1.904654323e-09))
_LN2_EXACT = (np.float32(-0.693145751953125), np.float32(-1.428606765330187e-06))
_LOG2_E = np.float32(1.4426950408889634)


def inverse_frequencies(head_dim: int, rope: Rope) -> Float32[np.ndarray, " half"]:
    """The angle that one position adds to each pair of a head's values; `head_dim` of them are
    rotated.

    The steps and their rounding are those of `transformers.modeling_rope_utils`.
    """
    powers = _powers(head_dim, rope.theta)
    plain = np.float32(1) / powers
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / np.float32(rope.factor)
        case "longrope":
            return np.float32(1) / (np.array(rope.factors, np.float32) * powers)
        case "llama3":
            return _slowed(plain, rope)
        case "yarn":
            kept = 1 - _ramp(head_dim, rope)
            return np.float32(1) / (np.float32(rope.factor) * powers) * (1 - kept) + plain * kept


def _slowed(plain: Float32[np.ndarray, " half"], rope: Rope) -> Float32[np.ndarray, " half"]:
    """Llama 3.1: long wavelengths are slowed by the factor, short ones not, some in between."""
    low, high, factor = (np.float32(it) for it in (rope.low_frequency_factor, rope.high_frequency_factor, rope.factor))
    context = np.float32(rope.original_context)
    wavelength = np.float32(2 * math.pi) / plain
    slowed = np.where(wavelength > context / low, plain / factor, plain)
    smooth = (context / wavelength - low) / (high - low)
    passing = (1 - smooth) * slowed / factor + smooth * slowed
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(between, passing, slowed).astype(np.float32)


def _ramp(dim: int, rope: Rope) -> Float32[np.ndarray, " half"]:
    """YaRN: how much of each pair's frequency is slowed, from 0 for fast ones to 1."""

    def pair_of(turns: float) -> float:
        return dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    places = np.arange(dim // 2, dtype=np.float32)
    return np.clip((places - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)


def _powers(head_dim: int, theta: float) -> Float32[np.ndarray, " half"]:
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    filled = len(exponents) // _TOGETHER * _TOGETHER
    base = np.float32(theta)
    rest = [base**exponent for exponent in exponents[filled:]]  # numpy computes powers of scalars with the C library
    return np.concatenate([_power(base, exponents[:filled]), np.array(rest, np.float32)])


def _power(base: np.float32, exponents: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    return _exponential(_times(_logarithm(np.full_like(exponents, base)), exponents))


def _logarithm(x: Float32[np.ndarray, " n"]) -> Double:
    """2 atanh((m - 1) / (m + 1)) + e ln 2, where x = m 2^e and m is within 0.75 and 1.5."""
    exponent = np.frexp(x * np.float32(1 / 0.75))[1] - 1
    mantissa = np.ldexp(x, -exponent)
    ratio = _quotient(_sum(np.float32(-1), mantissa), _sum(np.float32(1), mantissa))
    square = _product(ratio, ratio)
    tail = _polynomial(_ATANH, square[0])
    cubic = _product(_product(square, ratio), _sum_of_doubles(_times(square, tail), _ATANH_LAST))
    doubled = (ratio[0] * np.float32(2), ratio[1] * np.float32(2))
    return _ordered_sum(_ordered_sum(_times(_LN2, exponent.astype(np.float32)), doubled), cubic)


def _exponential(x: Double) -> Float32[np.ndarray, " n"]:
    """2^q exp(r), where x = q ln 2 + r and r is small."""
    q = np.rint((x[0] + x[1]) * _LOG2_E)
    for part in _LN2_EXACT:
        value, lost = _sum(x[0], q * part)
        x = value, lost + x[1]
    x = _normal(x)
    rest = _ordered_sum(x, _times(_product(x, x), _polynomial(_EXP, x[0])))
    value, lost = _ordered_sum((np.float32(1), np.float32(0)), rest)
    return np.ldexp(value + lost, q.astype(np.int32))


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    value: Floats = np.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(value, x, np.float32(coefficient))
    return value


def _sum(x: Floats, y: Floats) -> Double:
    value = x + y
    y_part = value - x
    return value, (x - (value - y_part)) + (y - y_part)


def _sum_of_doubles(x: Double, y: Double) -> Double:
    value, lost = _sum(x[0], y[0])
    return value, lost + (x[1] + y[1])


def _ordered_sum(x: Double, y: Double) -> Double:
    """The sum if `x` is the larger: cheaper than `_sum_of_doubles`, with other bits."""
    value = x[0] + y[0]
    return value, (x[0] - value + y[0]) + x[1] + y[1]


def _normal(x: Double) -> Double:
    value = x[0] + x[1]
    return value, (x[0] - value) + x[1]


def _times(x: Double, y: Floats) -> Double:
    value = x[0] * y
    return value, _fused(x[1], y, _fused(x[0], y, -value))


def _product(x: Double, y: Double) -> Double:
    value = x[0] * y[0]
    return value, _fused(x[0], y[1], _fused(x[1], y[0], _fused(x[0], y[0], -value)))


def _quotient(x: Double, y: Double) -> Double:
    inverse = np.float32(1) / y[0]
    value = x[0] * inverse
    missing = _fused(-y[1], inverse, _fused(-y[0], inverse, np.float32(1)))
    return value, _fused(value, missing, _fused(x[1], inverse, _fused(inverse, x[0], -value)))


def _fused(x: Floats, y: Floats, z: Floats) -> Floats:
    """`x * y + z` in float64, where the product is exact, then rounded to float32.

    A fused multiply-add rounds once; this rounds twice, and differs in one case of 2^29.
    """
    exact = np.asarray(x, np.float64) * np.asarray(y, np.float64) + np.asarray(z, np.float64)
    return exact.astype(np.float32)
