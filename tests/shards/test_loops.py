"""numba's loops encode large shards where numba is installed, and give what numpy gives."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import ml_dtypes
import numba
import numpy as np
import outputs
import pytest
from interpreter import others_run_during

import layertap
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards import compiled, compiled_rounding, loops
from layertap.shards.encode import encode
from layertap.shards.measuring import measure_in_float32
from layertap.shards.pickles import load_pickle
from layertap.shards.rounding import measure_sample, round_values
from layertap.shards.statistics_files import read_statistics
from layertap.shards.tensors import parse_tensors

ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}
STATISTICS = "statistics/shard_0001.safetensors"
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", FLOAT8], ids=str)
COMPUTED = pytest.mark.parametrize("computed", ["float32", "bfloat16"])


def samples(computed: str) -> list[Sample]:
    made = [outputs.sample(index, tokens) for index, tokens in enumerate((1, 40, 300, 17))]
    dtype = np.dtype(computed)
    return [replace(it, activations={tap: rows.astype(dtype) for tap, rows in it.activations.items()}) for it in made]


def encoded(monkeypatch, by_loops, samples, form) -> dict[str, bytes]:
    monkeypatch.setattr(loops, "_LARGE", 0 if by_loops else 1 << 60)
    return {path: b"".join(it.chunks()) for path, it in encode(1, samples, form, ABOUT).contents.items()}


def require_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Only norms may differ, and they are float32 or float64 columns."""
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-6, atol=1e-12)


@DTYPES
@COMPUTED
def test_a_tensor_shard_has_the_same_tensors_and_norms_within_a_millionth(monkeypatch, computed, dtype):
    form = outputs.shard_format(dtype=dtype, name="safetensors")
    by_numpy, by_loops = (encoded(monkeypatch, way, samples(computed), form) for way in (False, True))
    name = "shard_0001.safetensors"
    expected, found = (parse_tensors(it[name], name).tensors for it in (by_numpy, by_loops))
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        if "norm" in key:
            require_close(found[key], tensor)
        else:
            assert found[key].tobytes() == tensor.tobytes(), key


@COMPUTED
def test_a_pickle_has_the_same_activations(monkeypatch, computed):
    form = outputs.shard_format(compress=False)
    columns = {name: column.dtype.name for name, column in samples(computed)[0].columns.items()}
    shards = [
        load_pickle(encoded(monkeypatch, way, samples(computed), form)["shard_0001.pkl"], "shard", columns)
        for way in (False, True)
    ]
    expected, found = ([entry["activation"] for layer in it.values() for entry in layer] for it in shards)
    assert len(found) == 8
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))


@DTYPES
@COMPUTED
def test_statistics_agree(monkeypatch, computed, dtype):
    form = outputs.shard_format(dtype=dtype, name="safetensors")
    expected, found = (
        read_statistics(encoded(monkeypatch, way, samples(computed), form)[STATISTICS], STATISTICS, form.taps)
        for way in (False, True)
    )
    for tap, row in expected.items():
        assert found[tap].count == row.count == 358
        require_close(found[tap].m2, row.m2)
        np.testing.assert_allclose(found[tap].mean, row.mean, atol=1e-6)
        require_close(np.array(found[tap].mean_square_norm), np.array(row.mean_square_norm))
        assert (found[tap].max_sample_idx, found[tap].max_position) == (row.max_sample_idx, row.max_position)


@DTYPES
def test_verify_finds_nothing_wrong_in_what_the_loops_wrote(monkeypatch, tmp_path, dtype):
    monkeypatch.setattr(loops, "_LARGE", 0)
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(dtype=dtype, name="safetensors"))
    assert outputs.findings(tmp_path) == []


@pytest.mark.parametrize(
    ("dtype", "loop"), [("bfloat16", "sums"), ("int8", "sums"), ("int8", "to_codes"), ("float16", "to_float16")]
)
def test_a_large_shard_is_encoded_by_the_loops(monkeypatch, dtype, loop):
    module = compiled if loop == "sums" else compiled_rounding
    asked = Mock(wraps=getattr(module, loop))
    monkeypatch.setattr(module, loop, asked)
    form = outputs.shard_format(dtype=dtype, name="safetensors")
    encoded(monkeypatch, False, samples("float32"), form)
    assert asked.call_count == 0
    encoded(monkeypatch, True, samples("float32"), form)
    assert asked.call_count == len(samples("float32")) * len(form.taps)


def test_what_a_reader_gets_is_made_by_the_loops_if_the_form_says_so(monkeypatch):
    asked = Mock(wraps=compiled_rounding.to_codes)
    monkeypatch.setattr(compiled_rounding, "to_codes", asked)
    form = replace(outputs.shard_format(dtype="int8", name="safetensors"), by_loops=True)
    values, norms, _ = measure_sample(outputs.sample(0), Tap(0, "residual"), form)
    assert asked.call_count == 1
    np.testing.assert_allclose(norms, np.linalg.norm(values.astype(np.float64), axis=1), rtol=1e-6)


def test_any_number_of_threads_gives_the_same_bytes(monkeypatch):
    monkeypatch.setattr(loops, "_LARGE", 0)
    form = outputs.shard_format(("residual", "mlp"), name="safetensors")
    many = [outputs.sample(index, 30, form.sites) for index in range(20)]
    assert len({encode(1, many, form, ABOUT, threads).entry.line for threads in (1, 2, 5)}) == 1


@pytest.mark.parametrize("beside", [0.0, np.nan, np.inf])
def test_a_value_too_large_for_float16_is_refused(monkeypatch, beside):
    monkeypatch.setattr(loops, "_LARGE", 0)
    sample = outputs.sample(41)
    sample.activations[Tap(2, "residual")][1, :2] = beside, -1e5
    with pytest.raises(StorageError, match=r"sample 41, layer 2, residual: a value is too large for float16"):
        encode(1, [sample], outputs.shard_format(dtype="float16"), ABOUT)


def test_every_float_beside_a_float16_rounds_as_numpy_has_it():
    """All 2^20 leading bits of a float32, and the floats on either side of them."""
    bits = (np.arange(1 << 20, dtype=np.int64) << 12)[:, None] + np.array([-1, 0, 1])
    values = bits.astype(np.uint32).view(np.float32)
    rounded = np.empty(values.shape, np.float16)
    overflown = compiled_rounding.to_float16(values, rounded)
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded.view(np.uint16), values.astype(np.float16).view(np.uint16))
    assert overflown
    assert not compiled_rounding.to_float16(np.array([[65519.996, np.inf, np.nan]], np.float32), rounded[:1])


def test_large_shards_alone_use_the_loops(monkeypatch):
    asked = []
    monkeypatch.setattr(loops, "has_loops", lambda: asked.append(True) or True)
    assert not loops.loops_pay((1 << 26) - 1)
    assert not asked  # a small shard imports nothing
    assert loops.loops_pay(1 << 26)


@pytest.mark.parametrize("missing", ["numba", "layertap.shards.compiled"])
def test_without_numba_numpy_encodes(monkeypatch, missing):
    for name in ("layertap.shards.compiled", "layertap.shards.compiled_rounding", missing):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(loops, "has_loops", loops.has_loops.__wrapped__)
    assert not loops.has_loops()
    form = outputs.shard_format(dtype="int8", name="safetensors")
    assert encoded(monkeypatch, True, samples("float32"), form) == encoded(monkeypatch, False, samples("float32"), form)


def test_loops_that_nobody_may_compile_are_not_used(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert not loops.has_loops.__wrapped__()


def test_a_small_shard_does_not_import_numba():
    code = (
        "import sys, outputs\n"
        "from layertap.shards.encode import encode\n"
        f"encode(1, [outputs.sample(0)], outputs.shard_format(), {ABOUT})\n"
        "assert 'numba' not in sys.modules\n"
    )
    path = os.pathsep.join([str(Path(outputs.__file__).parent), str(Path(layertap.__file__).parents[1])])
    assert not subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}).returncode


@pytest.mark.parametrize("dtype", ["float64", ">f4"])
def test_numpy_does_what_the_loops_cannot_read(dtype):
    values = np.random.default_rng(0).standard_normal((20, 30)).astype(dtype)
    values[3, 3] = 1 + 2.0**-11 + 2.0**-40 if dtype == "float64" else 1
    for measured in zip(*(measure_in_float32(values, 0, by_loops=way) for way in (False, True)), strict=True):
        assert repr(measured[0]) == repr(measured[1])
    halves = np.empty((2, 20, 30), np.float16)
    overflown = [round_values(values, half, by_loops=way) for half, way in zip(halves, (False, True), strict=True)]
    assert overflown == [False, False]
    assert np.array_equal(halves[0], halves[1])


def test_other_threads_run_while_the_loops_do():
    values = np.ones((4096, 1024), np.float32)
    assert others_run_during(lambda: compiled.sums(values, values[0], None))
    assert all(it.targetoptions["nogil"] for it in (compiled._sum_singles, compiled._sum_halves))
    assert all(it.targetoptions["nogil"] for it in (compiled_rounding._to_codes, compiled_rounding._to_float16))
