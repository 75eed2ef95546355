"""8 bits with a scale for each token: values are rounded to the nearest code, and read so."""

import ml_dtypes
import numpy as np
import outputs
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards.encode import encode
from layertap.shards.quantised import FLOAT8, SMALLEST_SCALE, dequantise, dtype_name, fits, quantise, read_as
from layertap.shards.statistics_files import read_statistics

INT8 = np.dtype(np.int8)
LARGEST = {FLOAT8: 448.0, INT8: 127.0}
DTYPES = pytest.mark.parametrize("dtype", [FLOAT8, INT8], ids=["float8_e4m3", "int8"])
ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
finite = hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
usual = hnp.arrays(np.float32, shapes, elements=st.floats(-1024, 1024, width=32))


def numbers(dtype: np.dtype) -> np.ndarray:
    """Return what a code can represent, ascending, without -128 and NaN, which no code is."""
    every = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.unique(every[np.abs(every) <= LARGEST[dtype]])


def nearest(quotients: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the nearest number to each value, and in a tie the one with the even code, by trying
    all.
    """
    known = numbers(dtype)
    distances = np.abs(known - quotients[..., None].astype(np.float64))
    even = known.astype(dtype).view(np.uint8) % 2 == 0
    return known[np.lexsort((np.broadcast_to(~even, distances.shape), distances))[..., 0]]


@DTYPES
@given(values=st.one_of(finite, usual))
def test_each_quotient_is_rounded_to_the_nearest_and_to_even(dtype, values):
    made = quantise(values, dtype)
    with np.errstate(under="ignore"):
        quotients = values / made.scales[:, None]
    assert np.array_equal(made.codes.astype(np.float64), nearest(quotients, dtype))


@given(values=st.one_of(finite, usual))
def test_codes_of_float8_are_those_of_ml_dtypes(values):
    made = quantise(values, FLOAT8)
    expected = (values / made.scales[:, None]).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(made.codes.view(np.uint8), expected.view(np.uint8))


def test_every_float_between_two_codes_rounds_as_ml_dtypes_has_it():
    """All 2^16 leading bits of a float32 within range, and the floats on either side of them."""
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] + np.array([-1, 0, 1], np.int32).astype(np.uint32)
    quotients = bits.astype(np.uint32).view(np.float32).ravel()
    quotients = quotients[np.abs(quotients) <= 448]
    rows = np.stack([quotients, np.full_like(quotients, 448)], axis=1)  # so every scale is 1
    made = quantise(rows, FLOAT8)
    assert (made.scales == 1).all()
    assert np.array_equal(made.codes[:, 0].view(np.uint8), quotients.astype(FLOAT8).view(np.uint8))


def assert_same_either_way(values: np.ndarray, dtype: np.dtype) -> None:
    by_numpy, by_loops = quantise(values, dtype), quantise(values, dtype, by_loops=True)
    assert np.array_equal(by_loops.codes.view(np.uint8), by_numpy.codes.view(np.uint8))
    assert np.array_equal(by_loops.scales, by_numpy.scales, equal_nan=True)
    assert np.array_equal(by_loops.values, by_numpy.values, equal_nan=True)
    assert np.array_equal(np.signbit(by_loops.values), np.signbit(by_numpy.values))


@DTYPES
@given(values=hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_the_loops_give_what_numpy_gives_for_any_bits(dtype, values):
    assert_same_either_way(values.view(np.float32), dtype)


@DTYPES
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
@pytest.mark.parametrize("exponent", [-45, -38, -6, 0, 3, 37])
def test_the_loops_give_what_numpy_gives_at_any_scale(dtype, exponent, given):
    rng = np.random.default_rng(0)
    spread = rng.uniform(-4, 0, (300, 70))  # so that codes are evenly spaced or not
    values = (rng.standard_normal((300, 70)) * 10.0 ** (exponent + spread)).astype(np.float32)
    values[3], values[4], values[5, 60], values[6, 1] = 0, -0.0, np.nan, -np.inf
    assert_same_either_way(values.astype(np.dtype(given)), dtype)


@DTYPES
@given(scale=st.floats(2.0**-120, 2.0**118, width=32))
def test_what_a_code_can_stand_for_comes_back_with_the_same_code(dtype, scale):
    known = numbers(dtype).astype(np.float32)
    row = (known * np.float32(scale))[None]
    made = quantise(row, dtype)
    assert np.array_equal(made.codes[0].astype(np.float32), known)
    np.testing.assert_allclose(made.scales, scale, rtol=2**-22)
    if np.frexp(scale)[0] == 0.5:
        assert np.array_equal(made.values, row)


@DTYPES
@given(values=finite)
def test_what_is_read_is_finite_near_and_what_was_measured(dtype, values):
    made = quantise(values, dtype)
    assert np.array_equal(dequantise(made.codes, made.scales), made.values)
    assert np.isfinite(made.values).all()
    assert (made.scales >= SMALLEST_SCALE).all()
    assert fits(made.values, made.scales, dtype_name(dtype)).all()
    step, scales = (1 / 16, made.scales[:, None]) if dtype == FLOAT8 else (0, made.scales[:, None])
    least = 2.0**-10 if dtype == FLOAT8 else 0.5  # half of what the smallest codes differ by
    allowed = np.maximum(np.abs(values.astype(np.float64)) * step, least * scales.astype(np.float64))
    assert (np.abs(made.values.astype(np.float64) - values) <= allowed * (1 + 1e-6) + 1e-45).all()


@DTYPES
def test_a_token_of_zeros_has_the_smallest_scale_and_one_without_end_is_nan(dtype):
    values = np.array([[0, -0.0], [np.nan, 1], [2, -np.inf], [3, 1]], np.float32)
    made = quantise(values, dtype)
    assert made.scales[0] == np.float32(2.0**-126)
    assert made.values[0].tolist() == [0, 0]
    assert np.isnan(made.scales).tolist() == [False, True, True, False]
    assert np.isnan(made.values).all(axis=1).tolist() == [False, True, True, False]
    assert not made.codes[1:3].astype(np.float32).any()
    assert fits(made.values, made.scales, dtype_name(dtype)).all()


@DTYPES
@pytest.mark.parametrize("given_as", ["float32", "bfloat16"])
def test_a_token_does_not_depend_on_those_beside_it(dtype, given_as):
    values = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.dtype(given_as))  # several blocks
    made = quantise(values, dtype)
    for row in (0, 64, 65, 66, 299):
        alone = quantise(values[row : row + 1], dtype)
        assert np.array_equal(alone.codes[0].view(np.uint8), made.codes[row].view(np.uint8))
        assert alone.scales[0] == made.scales[row]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
@DTYPES
def test_nothing_is_quantised_to_nothing(dtype, shape):
    made = quantise(np.empty(shape, np.float32), dtype)
    assert (made.codes.shape, made.values.shape, made.scales.shape) == (shape, shape, shape[:1])


def test_names_are_those_of_the_flag():
    assert [dtype_name(dtype) for dtype in (FLOAT8, INT8, np.dtype("f4"))] == ["float8_e4m3", "int8", "float32"]
    assert [read_as(name) for name in ("float8_e4m3", "int8", "float16")] == ["float32", "float32", "float16"]


# In a shard


def shard(dtype: str, samples, threads: int | None = None, keep_nonfinite: bool = False):
    form = outputs.shard_format(dtype=dtype, name="safetensors", keep_nonfinite=keep_nonfinite)
    encoded = encode(1, samples, form, ABOUT, threads)
    return encoded, {path: b"".join(it.chunks()) for path, it in encoded.contents.items()}


def by_numpy(content: bytes) -> dict[str, np.ndarray]:
    """Read the tensors with the library.

    Its own conversion to numpy does not support float8 (safetensors 0.8.0).
    """
    of_names = {"F8_E4M3": FLOAT8, "I8": "i1", "F32": "f4", "I64": "i8", "I32": "i4", "I16": "i2", "U8": "u1"}
    return {
        name: np.frombuffer(told["data"], of_names[told["dtype"]]).reshape(told["shape"])
        for name, told in safetensors.deserialize(content)
    }


@pytest.mark.parametrize(
    ("dtype", "of_torch"), [("float8_e4m3fn", torch.float8_e4m3fn), ("int8", torch.int8)], ids=["float8_e4m3", "int8"]
)
def test_the_library_reads_codes_and_scales_into_numpy_and_torch(tmp_path, dtype, of_torch):
    samples = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 602))]
    path = tmp_path / "shard"
    path.write_bytes(shard(dtype, samples)[1]["shard_0001.safetensors"])
    read = by_numpy(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        for number, tap in enumerate(outputs.taps()):
            name = f"residual.{tap.layer}"
            expected = np.concatenate([quantise(it.activations[tap], np.dtype(dtype)).values for it in samples])
            assert read[name].dtype == np.dtype(dtype)
            assert np.array_equal(read[name].astype(np.float32) * read["scales"][number][:, None], expected)
            assert file.get_tensor(name).dtype == of_torch
            values = file.get_tensor(name).to(torch.float32) * file.get_tensor("scales")[number][:, None]
            assert np.array_equal(values.numpy(), expected)
            np.testing.assert_allclose(read["norms"][number], np.linalg.norm(expected, axis=1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_any_number_of_threads_gives_the_same_bytes(dtype):
    samples = [outputs.sample(index, 40) for index in range(5)]
    assert shard(dtype, samples, 1)[1] == shard(dtype, samples, 3)[1]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_tokens_that_are_kept_though_not_finite_are_counted_and_left_out_of_statistics(dtype):
    sample = outputs.sample(41, tokens=300)
    sample.activations[Tap(2, "residual")][[7, 200], 1] = np.inf
    with pytest.raises(StorageError, match=r"token 7: .* To store such tokens of \w+ as NaN, and have them counted"):
        shard(dtype, [outputs.sample(0), sample])
    encoded, contents = shard(dtype, [outputs.sample(0), sample], keep_nonfinite=True)
    assert encoded.entry.nonfinite == 2
    read = by_numpy(contents["shard_0001.safetensors"])
    assert np.flatnonzero(np.isnan(read["norms"][1])).tolist() == [3 + 7, 3 + 200]
    assert np.flatnonzero(np.isnan(read["scales"][1])).tolist() == [3 + 7, 3 + 200]
    statistics = read_statistics(contents["statistics/shard_0001.safetensors"], "statistics", outputs.taps())
    assert [row.count for row in statistics.values()] == [303, 301]
