"""Values in another dtype: exact where promised, measured elsewhere, and never infinite by
accident.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from layertap.core.taps import Tap
from layertap.errors import InputError
from layertap.export.values import convert, is_exact, worst_error
from layertap.reader.blocks import numpy_dtype

TAP = Tap(3, "mlp")
DTYPES = ("float32", "float16", "bfloat16")
BITS = npst.arrays(np.uint16, (4, 3), elements=st.integers(0, 2**16 - 1))


@given(BITS)
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_every_16_bits_are_exact_in_float32(stored: str, bits: np.ndarray) -> None:
    values = bits.view(numpy_dtype(stored))
    written = convert(values, np.dtype(np.float32), TAP)
    assert np.array_equal(written, values.astype(np.float64), equal_nan=True)
    assert is_exact(stored, "float32")
    assert worst_error(values, written) == 0


def test_what_is_exact() -> None:
    exact = {(one, other) for one in DTYPES for other in DTYPES if is_exact(one, other)}
    assert exact == {(name, name) for name in DTYPES} | {("float16", "float32"), ("bfloat16", "float32")}


@given(npst.arrays(np.float32, (5, 4), elements=st.floats(-60000, 60000, width=32)))
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_worst_error_is_that_of_a_token(name: str, values: np.ndarray) -> None:
    written = convert(values, numpy_dtype(name), TAP)
    stored = values.astype(np.float64)
    norms = np.linalg.norm(stored, axis=1)
    differences = np.linalg.norm(written.astype(np.float64) - stored, axis=1)
    tiny = norms < 1e-15  # float32 squares of these are none
    expected = (differences[~tiny] / norms[~tiny]).max(initial=0.0)
    if not tiny.any():
        assert worst_error(values, written) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(("value", "name"), [(65520.0, "float16"), (-1e30, "float16"), (3.4e38, "bfloat16")])
def test_a_finite_value_does_not_become_infinite(value: float, name: str) -> None:
    values = np.array([[1.0, value]], np.float32)
    with pytest.raises(
        InputError, match=rf"layer 3, mlp: has a value of {abs(value):g}, beyond what {name} holds".replace("+", r"\+")
    ):
        convert(values, numpy_dtype(name), TAP)


def test_the_largest_value_of_float16_and_what_is_not_finite_stay() -> None:
    values = np.array([[65504.0, 65519.0, np.inf, -np.inf, np.nan]], np.float32)
    written = convert(values, np.dtype(np.float16), TAP)
    assert np.array_equal(written, np.array([[65504, 65504, np.inf, -np.inf, np.nan]], np.float16), equal_nan=True)
    assert worst_error(values, written) == 0, "a token that is not finite has no error"
    assert worst_error(values[:, :2], written[:, :2]) == pytest.approx(15 / np.hypot(65504, 65519))


def test_a_token_of_zeros_has_no_error() -> None:
    values = np.zeros((2, 3), np.float32)
    assert worst_error(values, values.astype(ml_dtypes.bfloat16)) == 0
