"""What `read_pickle` refuses: hostile, damaged and malformed files."""

import contextlib
import gzip
import io
import os
import pickle
import tracemalloc

import numpy as np
import outputs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.objects.files import Checksummed
from layertap.shards.pickles import read_pickle


def written(*, compress=False) -> bytes:
    """A shard of one sample."""
    file = io.BytesIO()
    samples = [outputs.sample(0)]
    outputs.pickle_residual(Checksummed(file), samples, compress=compress)
    return file.getvalue()


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
        (
            lambda _: named("layertap.shards.pickles", "pickle.sys.modules"),
            "layertap.shards.pickles.pickle.sys.modules",
        ),
        (lambda _: named("builtins", "getattr"), "builtins.getattr"),
        (lambda _: pickle.dumps(np.zeros(1)), "numpy._core.multiarray._reconstruct"),
        (lambda _: pickle.dumps(np.dtype("f4")), "numpy.dtype"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_a_pickle_that_names_anything_else_is_refused_and_runs_nothing(tmp_path, hostile, name, compress):
    path, trace = tmp_path / "shard", tmp_path / "trace"
    content = hostile(trace)
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(DamageError) as refused:
        read_pickle(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert f"it names {name}," in str(refused.value)
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
def test_arrays_of_pointers_or_beyond_their_buffer_are_refused(tmp_path, arguments):
    path = tmp_path / "shard"
    path.write_bytes(pickle.dumps({0: [Call(np.ndarray, *arguments)]}))
    with pytest.raises(DamageError, match="cannot be read as a shard"):
        read_pickle(path)


def test_a_pickle_cannot_change_the_function_that_makes_arrays(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(b"\x80\x05cnumpy\nndarray\nN}\x8c\x0c__defaults__)s\x86b.")
    with pytest.raises(DamageError, match="__defaults__"):
        read_pickle(path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_shard_that_ends_early_is_refused_wherever_it_ends(tmp_path, compress):
    whole = written(compress=compress)
    path = tmp_path / "shard"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamageError):
            read_pickle(path)


def test_a_flipped_bit_behind_the_gzip_header_is_refused_or_changes_nothing(tmp_path):
    whole = written(compress=True)
    path = tmp_path / "shard"
    unnoticed = 0
    for bit in range(8 * 10, 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            activation = read_pickle(path)[2][0]["activation"]
        except DamageError:
            continue
        assert np.array_equal(activation, outputs.sample(0).activations[Tap(2, "residual")])
        unnoticed += 1
    assert unnoticed < 10  # bits that deflate does not use


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("more", [b"\0", b"garbage", written()])
def test_a_shard_that_goes_on_is_refused(tmp_path, compress, more):
    pickled = written() + more
    path = tmp_path / "shard"
    path.write_bytes(gzip.compress(pickled) if compress else pickled)
    with pytest.raises(DamageError, match="goes on behind the shard"):
        read_pickle(path)


@pytest.mark.parametrize(
    "greedy",
    [
        b"}r" + (1 << 25).to_bytes(4, "little") + b".",  # LONG_BINPUT
        b"\x96" + (1 << 28).to_bytes(8, "little") + b"short.",  # BYTEARRAY8
        b"\x8e" + (1 << 28).to_bytes(8, "little") + b"short.",  # BINBYTES8
        b"\x95" + (1 << 28).to_bytes(8, "little") + b"short.",  # FRAME
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_a_file_cannot_ask_for_much_more_memory_than_it_has(tmp_path, greedy, compress):
    path = tmp_path / "shard"
    path.write_bytes(gzip.compress(b"\x80\x05" + greedy) if compress else b"\x80\x05" + greedy)
    tracemalloc.start()
    with contextlib.suppress(DamageError):
        read_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000


def test_arrays_larger_than_what_is_read_at_once_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("layertap.shards.pickles._AT_ONCE", 7000)
    values = np.arange(20_000, dtype=np.float32).reshape(5000, 4)
    token_ids, flags = np.arange(5000, dtype=np.int32), np.zeros(5000, np.uint8)
    large = entry(activation=values, token_ids=token_ids, flags=flags, shape=values.shape)
    outputs.dump(tmp_path / "shard", {0: [large, large]})
    for found in read_pickle(tmp_path / "shard")[0]:
        assert np.array_equal(found["activation"], values)
        assert np.array_equal(found["token_ids"], token_ids)


@given(st.data())
def test_garbage_is_refused_with_the_one_error(tmp_path_factory, data):
    whole = bytearray(written(compress=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole)))
        whole[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.mktemp("garbage") / "shard"
    path.write_bytes(whole)
    with contextlib.suppress(DamageError):  # the change may have hit a number and gone unnoticed
        read_pickle(path)


@given(st.binary())
@example(b"}.")
def test_random_bytes_are_refused_or_a_shard_of_no_layers(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("random") / "shard"
    path.write_bytes(content)
    with contextlib.suppress(DamageError):
        assert read_pickle(path) == {}


def entry(**changed):
    """A sound entry, but for what is changed; None leaves a field out."""
    sound = {
        "sample_idx": 3,
        "activation": np.zeros((2, 4), np.float32),
        "shape": (2, 4),
        "text_preview": "prompt",
        "task_id": "task",
        "token_ids": np.zeros(2, np.int32),
        "origin": {"prediction": 0},
        "flags": np.zeros(2, np.uint8),
    }
    return {name: value for name, value in (sound | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "it holds a list, not a dict of layers"),
        (None, "it holds a NoneType, not a dict of layers"),
        ({"0": []}, "layer '0' is not a number with a list of samples"),
        ({True: []}, "layer True is not a number with a list of samples"),
        ({0: {}}, "layer 0 is not a number with a list of samples"),
        ({0: [entry(), 7]}, "layer 0, entry 1 is a int, not a dict"),
        ({0: [entry(sample_idx=1.0)]}, "layer 0, entry 0: sample_idx is missing or not of type int"),
        ({0: [entry(activation=[[1.0]])]}, "layer 0, entry 0: activation is missing or not of type ndarray"),
        ({0: [entry(shape=[2, 4])]}, "layer 0, entry 0: shape is missing or not of type tuple"),
        ({0: [entry(token_ids=np.zeros(2, np.float32))]}, "layer 0, entry 0: token_ids are not one row of int32"),
        ({0: [entry(token_ids=np.zeros((), np.int32))]}, "layer 0, entry 0: token_ids are not one row of int32"),
        ({0: [entry(flags=np.zeros(2, np.int32))]}, "layer 0, entry 0: flags are not one row of uint8"),
        *(
            ({4: [entry(**{name: None})]}, f"layer 4, entry 0: {name} is missing or not of type {kind}")
            for name, kind in {
                "sample_idx": "int",
                "activation": "ndarray",
                "shape": "tuple",
                "text_preview": "str",
                "task_id": "str",
                "token_ids": "ndarray",
                "origin": "dict",
                "flags": "ndarray",
            }.items()
        ),
    ],
)
def test_content_that_is_no_shard_is_refused_and_the_entry_named(tmp_path, content, complaint):
    path = tmp_path / "shard"
    outputs.dump(path, content)
    with pytest.raises(DamageError) as refused:
        read_pickle(path)
    assert str(refused.value) == f"{path}: cannot be read as a shard: {complaint}"


def test_a_field_that_a_later_version_may_add_is_no_damage(tmp_path):
    path = tmp_path / "shard"
    outputs.dump(path, {0: [entry(added=1)]})
    assert read_pickle(path)[0][0]["added"] == 1


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DamageError, match="No such file"):
        read_pickle(tmp_path / "shard")
