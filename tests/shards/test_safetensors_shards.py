"""Shards of safetensors, read by the safetensors library as numpy and PyTorch users do."""

import io
import json
import tracemalloc

import ml_dtypes
import numpy as np
import outputs
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from layertap.core.taps import Tap
from layertap.errors import DamageError, StorageError
from layertap.objects.files import Checksummed
from layertap.shards import tensors as tensor_file
from layertap.shards.safetensors import TENSORS, read_safetensors, write_safetensors
from layertap.shards.samples import StoredSample

TAP = Tap(2, "residual")
ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def written(samples, dtype="bfloat16") -> bytes:
    file = io.BytesIO()
    flags = [np.full(sample.tokens, sample.sample_idx % 7, np.uint8) for sample in samples]
    write_safetensors(Checksummed(file), samples, TAP, np.dtype(dtype), flags, ABOUT)
    return file.getvalue()


def expected(samples, dtype):
    return np.concatenate([sample.activations[TAP].astype(dtype) for sample in samples])


SAMPLES = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 1), (4, 600))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_it_into_numpy(tmp_path, dtype):
    path = tmp_path / "shard"
    path.write_bytes(written(SAMPLES, dtype))
    read = safetensors.numpy.load_file(path)
    assert set(read) == set(TENSORS)
    assert read["activations"].dtype == np.dtype(dtype)
    assert np.array_equal(read["activations"], expected(SAMPLES, dtype))
    assert read["token_ids"].dtype == read["positions"].dtype == np.int32
    assert np.array_equal(read["token_ids"], np.concatenate([sample.token_ids for sample in SAMPLES]))
    assert np.array_equal(read["positions"], np.r_[0:3, 0:1, 0:600])
    assert read["sample_offsets"].tolist() == [0, 3, 4, 604]
    assert read["sample_idx"].tolist() == [7, 2, 4]
    assert np.array_equal(read["flags"], np.repeat(np.array([0, 2, 4], np.uint8), [3, 1, 600]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_it_into_torch(tmp_path, dtype):
    path = tmp_path / "shard"
    path.write_bytes(written(SAMPLES, dtype))
    read = safetensors.torch.load_file(path)
    assert read["activations"].dtype == DTYPES[dtype]
    wide = read["activations"].to(torch.float32).numpy()
    assert np.array_equal(wide, expected(SAMPLES, dtype).astype(np.float32))
    assert read["sample_offsets"].tolist() == [0, 3, 4, 604]


def test_it_tells_what_it_is(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(written(SAMPLES))
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    told = json.loads(metadata.pop("samples"))
    assert [sample["task_id"] for sample in told] == ["task3", "task1", "task2"]
    assert told[0] == {
        "task_id": "task3",
        "origin": {"prediction": 1, "augmentation": {"colors": [0, 2, 1]}},
        "text_preview": "prompt 7",
    }
    assert metadata == {
        "format": "layertap-activations",
        "format_version": "1",
        **ABOUT,
        "layer": "2",
        "site": "residual",
        "dtype": "bfloat16",
    }


def bare(index: int, tokens: int, text: str) -> StoredSample:
    values = np.random.default_rng(index).standard_normal((tokens, 4), np.float32)
    return StoredSample(index, text, text, np.arange(tokens, dtype=np.int32), {TAP: values})


texts = st.text(st.characters(codec=None), max_size=70)  # half a surrogate pair may come from JSON
sample_lists = st.lists(st.builds(bare, st.integers(0, 2**40), st.integers(0, 6), texts), min_size=1, max_size=5)


@given(sample_lists, st.sampled_from(list(DTYPES)))
def test_the_data_is_aligned_and_comes_back_whatever_the_samples(samples, dtype):
    content = written(samples, dtype)
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0
    read = read_safetensors(content, "shard")
    assert read.data_start % 64 == 0
    assert np.array_equal(read.tensors["activations"], expected(samples, dtype))
    assert json.loads(read.metadata["samples"])[-1]["text_preview"] == samples[-1].text_preview
    assert safetensors.torch.load(content)["sample_idx"].tolist() == [sample.sample_idx for sample in samples]


@given(sample_lists)
def test_equal_samples_give_equal_bytes(samples):
    again = [bare(sample.sample_idx, sample.tokens, sample.task_id) for sample in samples]
    assert written(samples) == written(again)


def test_a_shard_is_never_whole_in_memory():
    class Nowhere(io.RawIOBase):
        def write(self, data):
            return len(data)

    tokens, hidden = 256, 512
    ones = np.ones((tokens, hidden), ml_dtypes.bfloat16)
    samples = [StoredSample(index, "t", "p", np.zeros(tokens, np.int32), {TAP: ones}) for index in range(16)]
    flags = [np.zeros(tokens, np.uint8) for _ in samples]
    tracemalloc.start()
    write_safetensors(Checksummed(Nowhere()), samples, TAP, np.dtype(np.float32), flags, ABOUT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * tokens * hidden * 4


def test_a_value_too_large_for_float16_is_refused():
    sample = outputs.sample(5)
    sample.activations[TAP][1, 1] = 1e6
    with pytest.raises(StorageError, match="sample 5, layer 2, residual: a value is too large for float16"):
        written([sample], "float16")


def test_a_header_that_no_reader_would_take_is_refused(monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(StorageError, match="lower --shard_size_gb"):
        written([outputs.sample(index) for index in range(9)])


def with_header(content: bytes, edit) -> bytes:
    """The file with its header edited."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.pop("flags"),
        lambda header: header["flags"].update(shape=[3]),
        lambda header: header["activations"].update(dtype="F8_E4M3"),
        lambda header: header["activations"].update(data_offsets=[0, 8]),
        lambda header: header["activations"].update(data_offsets=[0]),
        lambda header: header["activations"].update(shape=["x", 4]),
        lambda header: header["activations"].update(shape=[-604, -4]),
        lambda header: header.update(activations=7),
        lambda header: header["__metadata__"].update(layer=2),
        lambda header: header.update(__metadata__=[]),
        lambda header: header["__metadata__"].update(format="other"),
        lambda header: header.update(other=header.pop("flags")),
    ],
)
def test_a_header_that_is_not_right_is_refused(edit):
    with pytest.raises(DamageError, match="shard: "):
        read_safetensors(with_header(written(SAMPLES), edit), "shard")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:7],
        lambda content: content[:-1],
        lambda content: content + b"0",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: bytes(8) + content[8:],
        lambda content: (2).to_bytes(8, "little") + b"[]",
    ],
)
def test_a_file_that_is_none_is_refused(damage):
    with pytest.raises(DamageError, match="shard: is not a whole safetensors file"):
        read_safetensors(damage(written(SAMPLES)), "shard")
