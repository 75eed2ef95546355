import dataclasses
import gc
import gzip
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import weakref
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.objects.files import Checksummed, atomic_write
from layertap.shards.pickles import codec, load_pickle, read_pickle
from layertap.shards.samples import StoredSample

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)


def written(samples, dtype=FLOAT32, *, layers=outputs.LAYERS, compress=False) -> bytes:
    file = io.BytesIO()
    outputs.pickle_residual(Checksummed(file), samples, dtype, layers=layers, compress=compress)
    return file.getvalue()


def stored(path: Path, samples, dtype=FLOAT32, *, layers=outputs.LAYERS, compress=True) -> Path:
    path.write_bytes(written(samples, dtype, layers=layers, compress=compress))
    return path


def one_layer(activation, index=0, **fields) -> StoredSample:
    """A sample with this activation at layer 0."""
    plain = StoredSample(index, "task", "prompt", np.arange(len(activation), dtype=np.int32), {})
    return dataclasses.replace(plain, activations={Tap(0, "residual"): activation}, **fields)


def stored_activation(path: Path, activation, dtype) -> np.ndarray:
    return read_pickle(stored(path, [one_layer(activation)], dtype, layers=(0,)))[0][0]["activation"]


def require_equal(entries, samples, layer):
    for entry, sample in zip(entries, samples, strict=True):
        activation = sample.activations[Tap(layer, "residual")]
        assert list(entry) == [
            "sample_idx",
            "activation",
            "shape",
            "text_preview",
            "task_id",
            "token_ids",
            "origin",
            "flags",
        ]
        assert np.array_equal(entry["activation"], activation)
        assert np.array_equal(entry["token_ids"], sample.token_ids)
        assert (entry["shape"], entry["activation"].dtype) == (activation.shape, activation.dtype)
        assert entry["token_ids"].dtype == np.int32
        for name in ("sample_idx", "text_preview", "task_id"):
            assert entry[name] == getattr(sample, name)


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read_back(tmp_path, compress):
    samples = [outputs.sample(index, tokens) for index, tokens in enumerate((3, 1, 700))]
    shard = read_pickle(stored(tmp_path / "shard", samples, compress=compress))
    assert list(shard) == list(outputs.LAYERS)
    for layer, entries in shard.items():
        require_equal(entries, samples, layer)


def test_gzip_and_pickle_read_the_same_without_layertap(tmp_path):
    samples = [outputs.sample(index) for index in range(3)]
    with gzip.open(stored(tmp_path / "shard", samples)) as file:
        shard = pickle.load(file)
    for layer, entries in shard.items():
        require_equal(entries, samples, layer)


class Recorder(pickle.Unpickler):
    """Lists what a pickle names."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.named = set()

    def find_class(self, module, name):
        self.named.add(f"{module}.{name}")
        return super().find_class(module, name)


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (FLOAT32, {"numpy.ndarray"}),
        (FLOAT16, {"numpy.ndarray"}),
        (BFLOAT16, {"numpy.ndarray", "ml_dtypes.bfloat16"}),
    ],
)
def test_a_shard_names_nothing_private_so_that_every_numpy_reads_it(dtype, named):
    recorder = Recorder(written([outputs.sample(0), outputs.sample(1)], dtype))
    recorder.load()
    assert recorder.named == named


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
def test_arrays_are_read_back_writable_though_the_device_lent_them_read_only(tmp_path, dtype):
    activation = np.ones((2, 3), np.float32).astype(dtype)
    activation.flags.writeable = False
    sample = one_layer(activation)
    sample.token_ids.flags.writeable = False
    with gzip.open(stored(tmp_path / "shard", [sample], dtype, layers=(0,))) as file:
        entry = pickle.load(file)[0][0]
    assert entry["activation"].dtype == dtype
    assert entry["activation"].flags.writeable
    assert entry["token_ids"].flags.writeable


@st.composite
def sample_lists(draw):
    """Samples of one hidden size and dtype."""
    hidden = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([FLOAT32, BFLOAT16]))
    samples = []
    for index in range(draw(st.integers(0, 4))):
        values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((draw(st.integers(1, 6)), hidden))
        text = draw(st.text(st.characters(codec=None), max_size=6))
        samples.append(one_layer(values.astype(dtype), index, text_preview=text, task_id=text))
    return samples


def anew(sample: StoredSample) -> StoredSample:
    """An equal sample that shares no object with it, and whose arrays lie otherwise in memory."""
    (tap, activation), *_ = sample.activations.items()
    wide = np.zeros((2 * len(activation), activation.shape[1]), activation.dtype)
    wide[::2] = activation
    wide.flags.writeable = False
    return StoredSample(
        sample.sample_idx,
        "".join([*sample.task_id]),
        "".join([*sample.text_preview]),
        np.repeat(sample.token_ids, 2)[::2],
        {tap: wide[::2]},
    )


@given(sample_lists(), st.sampled_from([FLOAT32, FLOAT16, BFLOAT16]), st.booleans())
def test_equal_samples_give_equal_bytes_whatever_objects_they_are_made_of(samples, dtype, compress):
    fresh = [anew(sample) for sample in samples]
    assert written(samples, dtype, layers=(0,), compress=compress) == written(
        fresh, dtype, layers=(0,), compress=compress
    )


ELSEWHERE = """
import sys, io
sys.path[:0] = sys.argv[1:2]
import outputs
from layertap.objects.files import Checksummed

sink = Checksummed(io.BytesIO())
samples = [outputs.sample(index, tokens=50) for index in range(3)]
outputs.pickle_residual(sink, samples)
print(sink.crc32c)
"""


def test_another_process_writes_the_same_bytes(tmp_path):
    tests = Path(outputs.__file__).parent
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", ELSEWHERE, tests]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    sink = Checksummed(io.BytesIO())
    samples = [outputs.sample(index, tokens=50) for index in range(3)]
    outputs.pickle_residual(sink, samples)
    assert sink.crc32c == there


def test_the_gzip_header_has_neither_time_nor_name(tmp_path):
    path = tmp_path / "shard.pkl.gz"
    with atomic_write(path) as file:
        outputs.pickle_residual(file, [outputs.sample(0)])
    flags, time = path.read_bytes()[3], path.read_bytes()[4:8]
    assert (flags, time) == (0, bytes(4))


def test_activations_are_converted_one_at_a_time():
    class Nowhere(io.RawIOBase):
        def write(self, data):
            return len(data)

    samples = [one_layer(np.ones((256, 512), BFLOAT16), index) for index in range(16)]
    converted = 256 * 512 * 4
    tracemalloc.start()
    outputs.pickle_residual(Checksummed(Nowhere()), samples, layers=(0,), compress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * converted


def test_every_bfloat16_is_kept_exactly_in_float32(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    activation = bits.view(BFLOAT16)
    back = stored_activation(tmp_path / "shard", activation, FLOAT32)
    number = bits & 0x7FFF <= 0x7F80
    assert np.array_equal(back.view(np.uint32)[number], (bits.astype(np.uint32) << 16)[number])
    assert np.array_equal(np.isnan(back), ~number)


def test_every_bfloat16_is_kept_exactly_in_bfloat16(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    back = stored_activation(tmp_path / "shard", bits.view(BFLOAT16), BFLOAT16)
    assert np.array_equal(back.view(np.uint16), bits)


@pytest.mark.parametrize("beside", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_value_too_large_for_float16_is_refused_with_its_sample_and_place(dtype, beside):
    samples = [one_layer(np.ones((1, 2), dtype)), one_layer(np.array([[beside, -1e5]], dtype), index=41)]
    with pytest.raises(
        StorageError, match=r"^sample 41, layer 0, residual: a value is too large for float16 \(65504\)"
    ):
        written(samples, FLOAT16, layers=(0,))


def test_the_largest_float16_fits_and_the_next_float32_does_not(tmp_path):
    border = np.array([[65519.996]], np.float32)  # the last float32 that rounds to 65504
    assert stored_activation(tmp_path / "shard", border, FLOAT16).item() == 65504
    with pytest.raises(StorageError):
        stored_activation(tmp_path / "shard", np.nextafter(border, np.float32(np.inf)), FLOAT16)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_nan_and_infinity_pass_into_float16_unchanged(tmp_path, dtype):
    activation = np.array([[np.nan, np.inf, -np.inf, 1.5]], dtype)
    back = stored_activation(tmp_path / "shard", activation, FLOAT16)
    assert np.array_equal(back, np.array([[np.nan, np.inf, -np.inf, 1.5]], FLOAT16), equal_nan=True)


def test_codec_names_what_compresses():
    assert codec(compress=False) == "none"
    assert codec(compress=True) in ("isal-2", "zlib-1")


WITHOUT_ISAL = """
import sys, io
sys.modules["isal"] = None
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
import outputs
from layertap.errors import DamageError
from layertap.objects.files import atomic_write
from layertap.shards.pickles import codec, load_pickle, read_pickle

path = Path(sys.argv[2])
with atomic_write(path) as file:
    outputs.pickle_residual(file, [outputs.sample(0)])
assert list(read_pickle(path)) == list(outputs.LAYERS)
whole = path.read_bytes()
for damaged in (whole[:-1], whole[:20] + b"damaged" + whole[27:]):
    Path(sys.argv[3]).write_bytes(damaged)
    try:
        read_pickle(Path(sys.argv[3]))
    except DamageError:
        print("refused")
print(codec(compress=True))
"""


def test_zlib_stands_in_where_isal_has_no_wheel(tmp_path):
    path = tmp_path / "shard"
    tests = Path(outputs.__file__).parent
    command = [sys.executable, "-c", WITHOUT_ISAL, tests, path, tmp_path / "damaged"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "refused", "zlib-1"]
    assert zlib.decompress(path.read_bytes(), wbits=31) == written([outputs.sample(0)])
    require_equal(read_pickle(path)[2], [outputs.sample(0)], layer=2)


def test_a_shard_is_in_memory_no_longer_than_it_is_used() -> None:
    file = io.BytesIO(written(outputs.three_shards()[0]))
    gc.disable()  # which could come by
    try:
        layers = load_pickle(file, "shard")
        held = weakref.ref(layers[0][0]["activation"]), weakref.ref(file)
        del layers, file
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()
