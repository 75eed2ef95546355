"""Any number of threads encodes the same bytes, holds a bounded part, and raises one error."""

import gzip
import pickle
import threading
from dataclasses import replace
from functools import cache

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np
import outputs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.core.columns import COLUMNS
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import StorageError
from layertap.shards.encode import encode
from layertap.shards.form import ShardFormat
from layertap.shards.pickles import load_pickle
from layertap.shards.threads import InOrder, usable_cores, working

ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}
TAPS = {Tap(0, "residual"): 96, Tap(3, "residual"): 96, Tap(3, "mlp"): 40}


@cache
def samples(dtype: str) -> list[Sample]:
    """Samples with several gzip members at each site, whose borders are inside activations."""
    made = [outputs.sample(index, tokens, widths=TAPS) for index, tokens in enumerate((2500, 1, 700, 1900, 3))]
    return [
        replace(one, activations={tap: values.astype(np.dtype(dtype)) for tap, values in one.activations.items()})
        for one in made
    ]


def contents(form: ShardFormat, computed: str, threads: int) -> dict[str, bytes]:
    shard = encode(1, samples(computed), form, ABOUT, threads)
    for file in shard.entry.files:
        assert (shard.contents[file.path].size, shard.contents[file.path].crc32c) == (file.bytes, file.crc32c)
    return {path: b"".join(it.chunks()) for path, it in shard.contents.items()}


FORMS = st.builds(
    ShardFormat,
    taps=st.just(TAPS),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]).map(np.dtype),
    compress=st.booleans(),
    name=st.sampled_from(["pickle", "safetensors"]),
)


@given(FORMS, st.sampled_from(["float32", "bfloat16"]), st.sampled_from([2, 3, 7]))
def test_the_bytes_are_those_of_one_thread(form, computed, threads):
    assert contents(form, computed, threads) == contents(form, computed, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_members_are_one_pickle_for_gzip_alone(threads):
    form = ShardFormat(TAPS, np.dtype(np.float32), compress=True)
    content = contents(form, "bfloat16", threads)["residual/shard_0001.pkl.gz"]
    plain = contents(replace(form, compress=False), "bfloat16", threads)["residual/shard_0001.pkl"]
    assert len(plain) > 2 << 20
    assert gzip.decompress(content) == plain
    for shard in (pickle.loads(plain), load_pickle(content, "shard", {name: it.name for name, it in COLUMNS.items()})):
        assert list(shard) == [0, 3]
        for layer, entries in shard.items():
            for entry, sample in zip(entries, samples("bfloat16"), strict=True):
                expected = sample.activations[Tap(layer, "residual")].astype(np.float32)
                assert np.array_equal(entry["activation"], expected)
                assert np.allclose(entry["norms"], np.linalg.norm(expected, axis=1))


def test_what_one_member_held_is_read_as_before():
    form = ShardFormat(TAPS, np.dtype(np.float32), compress=False)
    plain = contents(form, "bfloat16", 1)["residual/shard_0001.pkl"]
    names = {name: it.name for name, it in COLUMNS.items()}
    assert list(load_pickle(gzip.compress(plain, 1), "shard", names)) == [0, 3]


@pytest.mark.parametrize("name", ["pickle", "safetensors"])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_sample_that_is_refused_in_a_thread_is_refused_once_and_no_thread_is_left(name, threads):
    broken = [replace(one, activations={**one.activations}) for one in samples("float32")]
    for number in (1, 3):
        values = broken[number].activations[Tap(3, "mlp")].copy()
        values[0, 0] = np.nan
        broken[number].activations[Tap(3, "mlp")] = values
    form = ShardFormat(TAPS, np.dtype(np.float32), compress=True, name=name)
    with pytest.raises(StorageError, match=r"sample 1, layer 3, mlp, token 0"):
        encode(1, broken, form, ABOUT, threads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


@given(st.integers(1, 4), st.integers(0, 40))
def test_results_come_in_order_and_a_bounded_number_waits(threads, items):
    begun, taken = [], 0
    with working(threads) as workers:
        calls = InOrder(workers, lambda item: (begun.append(item), item)[1])
        for item in range(items):
            for result in calls.begin(item):
                assert result == taken
                taken += 1
            assert len(begun) - taken <= 2 * threads
        assert list(calls.rest()) == list(range(taken, items))


def test_there_is_a_thread_for_each_core_that_may_be_used():
    assert 1 <= usable_cores() <= 32
