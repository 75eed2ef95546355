import gc
import gzip
import io
import os
import pickle
import re
import subprocess
import sys
import weakref
import zlib
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.columns import COLUMNS, token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.shards.pickles import codec, load_pickle, write_pickle
from layertap.shards.threads import working
from layertap.shards.values import SampleValues, TapValues

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
NAMES = {name: dtype.name for name, dtype in COLUMNS.items()}
TAP = Tap(0, "residual")


def written(samples, dtype=FLOAT32, *, layers=outputs.LAYERS, compress=False) -> bytes:
    """A pickle of the residual stream, with norms of zero."""
    file = io.BytesIO()
    taps = {layer: Tap(layer, "residual") for layer in layers}
    at_layers = {
        layer: TapValues(
            samples[0].activations[tap].shape[1] if samples else 0,
            [SampleValues(it.activations[tap].astype(dtype), np.zeros(it.tokens, np.float32)) for it in samples],
        )
        for layer, tap in taps.items()
    }
    with working(2) as threads:
        write_pickle(file, samples, at_layers, threads if compress else None)
    return file.getvalue()


def load(content: bytes) -> dict:
    return load_pickle(content, "shard", NAMES)


def one_layer(activation, index=0, text="prompt") -> Sample:
    """A sample with this activation at layer 0."""
    columns = token_columns(np.arange(len(activation), dtype=np.int32), frozenset())
    return Sample(index, text, text, columns, {}, {TAP: activation})


def require_equal(entries, samples, layer):
    words = ["sample_idx", "activation", "shape", "text_preview", "task_id", "origin", "norms"]
    for entry, sample in zip(entries, samples, strict=True):
        activation = sample.activations[Tap(layer, "residual")]
        assert list(entry) == [*words, *COLUMNS]
        assert np.array_equal(entry["activation"], activation)
        assert (entry["shape"], entry["activation"].dtype) == (activation.shape, activation.dtype)
        for name, dtype in COLUMNS.items():
            assert np.array_equal(entry[name], sample.columns[name])
            assert entry[name].dtype == dtype
        for name in ("sample_idx", "text_preview", "task_id"):
            assert entry[name] == getattr(sample, name)


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read_back_and_by_gzip_and_pickle_alone(compress):
    samples = [outputs.sample(index, tokens) for index, tokens in enumerate((3, 1, 700))]
    content = written(samples, compress=compress)
    plain = pickle.loads(gzip.decompress(content) if compress else content)
    for shard in (load(content), plain):
        assert list(shard) == list(outputs.LAYERS)
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
def test_arrays_are_read_back_writable_though_the_device_lent_them_read_only(dtype):
    activation = np.ones((2, 3), np.float32).astype(dtype)
    activation.flags.writeable = False
    sample = one_layer(activation)
    sample.token_ids.flags.writeable = False
    entry = pickle.loads(written([sample], dtype, layers=(0,)))[0][0]
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
        samples.append(one_layer(values.astype(dtype), index, text))
    return samples


def equal_copy(sample: Sample) -> Sample:
    """Return an equal sample that shares no object with it, and whose arrays have another memory
    layout.
    """
    (tap, activation), *_ = sample.activations.items()
    wide = np.zeros((2 * len(activation), activation.shape[1]), activation.dtype)
    wide[::2] = activation
    wide.flags.writeable = False
    return Sample(
        sample.sample_idx,
        "".join([*sample.task_id]),
        "".join([*sample.text_preview]),
        {name: np.repeat(values, 2)[::2] for name, values in sample.columns.items()},
        {},
        {tap: wide[::2]},
    )


@given(sample_lists(), st.sampled_from([FLOAT32, BFLOAT16]), st.booleans())
def test_equal_samples_give_equal_bytes_whatever_objects_they_are_made_of(samples, dtype, compress):
    fresh = [equal_copy(sample) for sample in samples]
    assert written(samples, dtype, layers=(0,), compress=compress) == written(
        fresh, dtype, layers=(0,), compress=compress
    )


ELSEWHERE = """
import sys
sys.path[:0] = sys.argv[1:3]
import outputs
from test_pickles import written
import google_crc32c

print(google_crc32c.value(written([outputs.sample(index, tokens=50) for index in range(3)], compress=True)))
"""


def test_another_process_writes_the_same_bytes():
    places = [Path(outputs.__file__).parent, Path(__file__).parent]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", ELSEWHERE, *places]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    content = written([outputs.sample(index, tokens=50) for index in range(3)], compress=True)
    assert str(google_crc32c.value(content)) == there


def test_the_gzip_header_has_neither_time_nor_name():
    content = written([outputs.sample(0)], compress=True)
    assert (content[3], content[4:8]) == (0, bytes(4))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_every_bfloat16_is_kept_exactly(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    back = load(written([one_layer(bits.view(BFLOAT16))], dtype, layers=(0,)))[0][0]["activation"]
    number = bits & 0x7FFF <= 0x7F80
    assert np.array_equal(back.astype(FLOAT32).view(np.uint32)[number], (bits.astype(np.uint32) << 16)[number])
    assert np.array_equal(np.isnan(back.astype(FLOAT32)), ~number)


def test_codec_names_what_compresses():
    assert codec(compress=False) == "none"
    assert codec(compress=True) in ("isal-2", "zlib-1")


WITHOUT_ISAL = """
import sys
sys.modules["isal"] = None
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import outputs
from test_pickles import load, written
from layertap.errors import DamageError
from layertap.shards.pickles import codec

whole = written([outputs.sample(0)], compress=True)
Path(sys.argv[3]).write_bytes(whole)
assert list(load(whole)) == list(outputs.LAYERS)
for damaged in (whole[:-1], whole[:20] + b"damaged" + whole[27:]):
    try:
        load(damaged)
    except DamageError:
        print("refused")
print(codec(compress=True))
"""


def test_zlib_takes_over_where_isal_has_no_wheel(tmp_path):
    path, places = tmp_path / "shard", [Path(outputs.__file__).parent, Path(__file__).parent]
    command = [sys.executable, "-c", WITHOUT_ISAL, *places, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "refused", "zlib-1"]
    assert zlib.decompress(path.read_bytes(), wbits=31) == written([outputs.sample(0)])
    require_equal(load(path.read_bytes())[2], [outputs.sample(0)], layer=2)


def test_a_shard_is_in_memory_no_longer_than_it_is_used() -> None:
    content = written(outputs.three_shards()[0])
    gc.disable()  # which could come by
    try:
        layers = load(content)
        held = weakref.ref(layers[0][0]["activation"])
        del layers
        assert held() is None
    finally:
        gc.enable()


# What is refused.


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module: str, name: str) -> bytes:
    """A pickle of the object with this name, made without that object."""
    return b"\x80\x05" + b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93."


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (lambda path: pickle.dumps({0: [Call(os.system, f"touch {path}")]}), "posix.system"),
        (lambda path: pickle.dumps(Call(eval, f"open({str(path)!r}, 'w')")), "builtins.eval"),
        (lambda path: pickle.dumps(Call(np.load, str(path), None, True)), "numpy.load"),
        (lambda _: named("numpy", "ndarray.tofile"), "numpy.ndarray.tofile"),
        (lambda _: named("numpy", "ndarray.__class__"), "numpy.ndarray.__class__"),
        (lambda _: named("layertap.shards.pickles", "pickle.sys"), "layertap.shards.pickles.pickle.sys"),
        (lambda _: named("builtins", "getattr"), "builtins.getattr"),
        (lambda _: pickle.dumps(np.zeros(1)), "numpy._core.multiarray._reconstruct"),
        (lambda _: pickle.dumps(np.dtype("f4")), "numpy.dtype"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_a_pickle_that_names_anything_else_is_refused_and_runs_nothing(tmp_path, hostile, name, compress):
    trace = tmp_path / "trace"
    content = hostile(trace)
    with pytest.raises(DamageError, match=rf"^shard: .*it names {re.escape(name)},"):
        load(gzip.compress(content) if compress else content)
    assert not trace.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ((1,), "O", b"\1" * 8),  # an object at a wild address
        ((1 << 40,), "<f4", b""),
        ((1 << 40,),),
        ((1,), {"f4"}, b"1234"),
        ((1,), "<f4", "text"),
        ("1", "<f4", b"1234"),
        ((3,), "<f4", b"1234"),
    ],
)
def test_arrays_of_pointers_or_beyond_their_buffer_are_refused(arguments):
    with pytest.raises(DamageError, match="cannot be read as a shard"):
        load(pickle.dumps({0: [Call(np.ndarray, *arguments)]}))


def test_a_pickle_cannot_change_the_function_that_makes_arrays():
    with pytest.raises(DamageError):
        load(b"\x80\x05cnumpy\nndarray\nN}\x8c\x0c__defaults__)s\x86b.")
    require_equal(load(written([outputs.sample(0)]))[2], [outputs.sample(0)], layer=2)


@pytest.mark.parametrize("compress", [False, True])
def test_a_shard_that_ends_early_or_goes_on_is_refused(compress):
    whole = written([outputs.sample(0)], compress=compress)
    for length in range(len(whole)):
        with pytest.raises(DamageError):
            load(whole[:length])
    more = written([outputs.sample(0)]) + b"\0"
    with pytest.raises(DamageError, match="has more bytes after the shard"):
        load(gzip.compress(more) if compress else more)


def entry(**changed):
    """A sound entry with these changes; None leaves a field out."""
    sound = {
        "sample_idx": 3,
        "activation": np.zeros((2, 4), np.float32),
        "shape": (2, 4),
        "text_preview": "prompt",
        "task_id": "task",
        "origin": {"prediction": 0},
        "norms": np.zeros(2, np.float32),
        **token_columns(np.zeros(2, np.int32), frozenset()),
    }
    return {name: value for name, value in (sound | changed).items() if value is not None}


def dumped(content) -> bytes:
    file = io.BytesIO()
    outputs.PlainPickler(file, 5).dump(content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "it holds a list, not a dict of layers"),
        ({"0": []}, "layer '0' is not a number with a list of samples"),
        ({True: []}, "layer True is not a number with a list of samples"),
        ({0: {}}, "layer 0 is not a number with a list of samples"),
        ({0: [entry(), 7]}, "layer 0, entry 1 is a int, not a dict"),
        ({0: [entry(sample_idx=1.0)]}, "layer 0, entry 0: sample_idx is missing or not of type int"),
        ({0: [entry(shape=[2, 4])]}, "layer 0, entry 0: shape is missing or not of type tuple"),
        ({0: [entry(token_ids=np.zeros(2, np.float32))]}, "layer 0, entry 0: token_ids is missing or not one int32"),
        ({0: [entry(flags=np.zeros(3, np.uint8))]}, "layer 0, entry 0: flags is missing or not one uint8 a token"),
        *(
            ({4: [entry(**{name: None})]}, f"layer 4, entry 0: {name} is missing")
            for name in entry()
            if name != "norms"
        ),
    ],
)
def test_content_that_is_no_shard_is_refused_and_the_entry_named(content, complaint):
    with pytest.raises(DamageError, match=f"^shard: cannot be read as a shard: {re.escape(complaint)}"):
        load(dumped(content))


def test_a_field_that_a_later_version_may_add_is_no_damage():
    assert load(dumped({0: [entry(added=1)]}))[0][0]["added"] == 1
