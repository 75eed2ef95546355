"""Decide which rounding explains a distance: none that matters, storage, or the products.

We look at three things.

- **The grid** of the numbers, whatever their dtype: bfloat16 values that were widened to float32
  are still bfloat16 values.
- **Whether the numbers are the truth on that grid.** Values computed in float32 and stored in
  bfloat16 are our float32 values, rounded, except a few that lie between two bfloat16 numbers.
  Values computed in bfloat16 differ, and are further away.
- **Their distance**, for their depth: each layer adds its own rounding, so the bound grows with the
  square root of the layers.

The bounds are wide, about three times what we measured (docs/compare-dumps.md). A distance within
them may be rounding, and a smaller fault cannot be distinguished from it. They are narrower for an
explanation with many constants, which might fit what it does not explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import ml_dtypes
import numpy as np

from layertap.compare.measure import median, token_errors

Grid = Literal["bfloat16", "float16", "tf32", "float32"]
Level = Literal["float32", "stored", "tf32", "bfloat16"]
Freedom = Literal["none", "few", "many"]
"""How many constants were fitted before the distance was measured."""

FLOAT32 = 2e-5
"""The largest float32 error of the median token; 1e-6 is typical."""
_UNITS: dict[str, float] = {"tf32": 2.0**-11, "bfloat16": 2.0**-8}
_ON_GRID = 0.999
_STORED = 0.95
_TF32_TAIL = np.uint32(0x1FFF)


@dataclass(frozen=True)
class Rounding:
    """The difference that remains between an array and the truth."""

    grid: Grid
    level: Level | None
    """Which rounding explains it; None if it is larger than any rounding."""
    error: float
    """The error of the median token."""
    storage: float
    """The error of the median token if the truth is rounded to the grid."""
    equal: float
    """The share of its numbers that equal the truth rounded to the grid."""

    def describe(self) -> str:
        """Describe the rounding in words."""
        match self.level:
            case "float32":
                return "equal within float32 rounding"
            case "stored":
                return (
                    f"float32 values, rounded to {self.grid} to be stored: {self.equal:.1%} of them are ours, rounded"
                )
            case "tf32":
                return f"rounding as of {self._products()}: {_share(self.error)} off" + self._beside_storage()
            case "bfloat16":
                return f"rounding as of bfloat16 computing: {_share(self.error)} off" + self._beside_storage()
        return f"{_share(self.error)} off, more than rounding leaves"

    def _products(self) -> str:
        return "float16 computing" if self.grid == "float16" else "TF32 products (or float16)"

    def _beside_storage(self) -> str:
        return f", where storing alone would leave {_share(self.storage)}" if self.storage else ""


def grid_of(parts: Sequence[np.ndarray]) -> Grid:
    """Return the coarsest grid that holds all but a thousandth of the finite numbers.

    One number in a thousand may have been changed by something else.
    """
    values = np.concatenate([part[np.isfinite(part) & (part != 0)] for part in parts])
    grids: tuple[Grid, ...] = ("bfloat16", "float16", "tf32")
    return next(
        (grid for grid in grids if values.size and np.mean(rounded(values, grid) == values) > _ON_GRID), "float32"
    )


def rounded(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Round to the nearest numbers of a grid; returns float32."""
    match grid:
        case "bfloat16":
            return values.astype(ml_dtypes.bfloat16).astype(np.float32)
        case "float16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16).astype(np.float32)
        case "tf32":
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            nearest = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
            return (nearest & ~_TF32_TAIL).view(np.float32)
    return np.asarray(values, np.float32)


def judge(
    found: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    grid: Grid,
    depth: int,
    freedom: Freedom = "none",
    stretch: float = 1.0,
) -> Rounding:
    """Decide which rounding explains the distance of rows from the truth, `depth` layers deep.

    `stretch` is how much longer activations were before something was subtracted from them.
    """
    error = median([token_errors(x, y) for x, y in zip(found, truth, strict=True)])
    stored = [rounded(y, grid) for y in truth]
    storage = 0.0 if grid == "float32" else median([token_errors(z, y) for z, y in zip(stored, truth, strict=True)])
    equal = np.concatenate([(x == z).mean(axis=1) for x, z in zip(found, stored, strict=True)])
    share = float(np.median(equal)) if equal.size else 0.0
    return Rounding(
        grid, _level(error / stretch, storage / stretch, share, grid, depth, freedom), error, storage, share
    )


def _level(error: float, storage: float, equal: float, grid: Grid, depth: int, freedom: Freedom) -> Level | None:
    if error <= FLOAT32:
        return "float32"
    if grid != "float32" and equal >= _STORED:
        return "stored"
    computed = sqrt(max(error**2 - storage**2, 0.0))
    if grid != "bfloat16" and computed <= _bound_of_ten_bits(grid, depth):
        return "tf32"
    return "bfloat16" if computed <= _bound_of_seven_bits(grid, depth, freedom) else None


def _bound_of_ten_bits(grid: Grid, depth: int) -> float:
    """Where values are float32, less than products of seven bits leave, which are eight times as
    coarse.
    """
    return usual_bound("tf32", depth) if grid == "float16" else 3.3e-4 * (1 + 0.8 * sqrt(depth))


def _bound_of_seven_bits(grid: Grid, depth: int, freedom: Freedom) -> float:
    """Where values are float32, the stream was not rounded between layers, unless a change came
    after it was; and what many constants explain has to be near.
    """
    if freedom == "few" or (freedom == "none" and grid == "bfloat16"):
        return usual_bound("bfloat16", depth)
    return _UNITS["bfloat16"] * (1 + sqrt(depth)) * (0.75 if freedom == "many" else 1)


def usual_bound(level: Literal["tf32", "bfloat16"], depth: int) -> float:
    """The most that computing so leaves in the median token, behind so many layers."""
    return _UNITS[level] * (2 + 3 * sqrt(depth))


def _share(error: float) -> str:
    return f"{error:.2g}" if error < 1e-3 else f"{error:.2%}"
