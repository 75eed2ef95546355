"""numba's loops encode large shards where numba is installed, and give what numpy gives."""

import sys
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import outputs
import pytest

from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards import compiled, compiled_rounding, loops
from layertap.shards.encode import encode
from layertap.shards.pickles import load_pickle
from layertap.shards.rounding import measure_sample
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
    rounded, overflown = compiled_rounding.to_float16(values)
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded.view(np.uint16), values.astype(np.float16).view(np.uint16))
    assert overflown
    assert not compiled_rounding.to_float16(np.array([[65519.996, np.inf, np.nan]], np.float32))[1]


def test_large_shards_alone_use_the_loops(monkeypatch):
    asked = []
    monkeypatch.setattr(loops, "has_loops", lambda: asked.append(True) or True)
    assert not loops.loops_pay((1 << 24) - 1)
    assert not asked  # a small shard imports nothing
    assert loops.loops_pay(1 << 24)


@pytest.mark.parametrize("missing", ["numba", "layertap.shards.compiled"])
def test_without_numba_numpy_encodes(monkeypatch, missing):
    for name in ("layertap.shards.compiled", "layertap.shards.compiled_rounding", missing):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(loops, "has_loops", loops.has_loops.__wrapped__)
    assert not loops.has_loops()
    form = outputs.shard_format(dtype="int8", name="safetensors")
    assert encoded(monkeypatch, True, samples("float32"), form) == encoded(monkeypatch, False, samples("float32"), form)


def test_a_reader_of_one_sample_does_not_wait_for_numba():
    form = outputs.shard_format()
    assert not form.by_loops
    measure_sample(outputs.sample(0), Tap(0, "residual"), form)


def test_a_loop_without_a_folder_for_its_result_is_compiled_all_the_same():
    source = "def double(value):\n    return 2 * value\n"
    space: dict[str, object] = {}
    exec(compile(source, "<no file>", "exec"), space)
    assert compiled.compiled("int64(int64)")(space["double"])(21) == 42


def test_other_threads_run_while_the_loops_do():
    """Python takes the interpreter from no thread here, so only the loops can give it away."""
    begun, other_ran = threading.Event(), threading.Event()
    values = np.ones((4096, 1024), np.float32)
    other = threading.Thread(target=lambda: (begun.wait(), other_ran.set()))
    interval = sys.getswitchinterval()
    other.start()
    sys.setswitchinterval(10_000)
    try:
        begun.set()
        meanwhile = any(len(compiled.sums(values, values[0], None)) and other_ran.is_set() for _ in range(2000))
    finally:
        sys.setswitchinterval(interval)
        other.join()
    assert meanwhile
