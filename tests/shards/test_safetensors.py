"""Shards of safetensors, read by the safetensors library as numpy and PyTorch users do."""

import io
import json

import numpy as np
import outputs
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import DamageError, StorageError
from layertap.shards import tensors
from layertap.shards.safetensors import write_safetensors
from layertap.shards.tensors import parse_tensors
from layertap.shards.values import SampleValues, TapValues

TAPS = {Tap(2, "residual"): 4, Tap(0, "mlp"): 6}
ABOUT = {"model_path": "m", "model_type": "qwen2", "fingerprint": "f" * 64}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def norms_of(sample: Sample, tap: Tap) -> np.ndarray:
    return np.linalg.norm(sample.activations[tap], axis=1)


def written(samples, dtype="bfloat16") -> bytes:
    file = io.BytesIO()
    stored = np.dtype(dtype)
    values = {
        tap: TapValues(width, [SampleValues(it.activations[tap].astype(stored), norms_of(it, tap)) for it in samples])
        for tap, width in TAPS.items()
    }
    write_safetensors(file, samples, values, stored, ABOUT)
    return file.getvalue()


def expected(samples, tap, dtype):
    return np.concatenate([sample.activations[tap].astype(dtype) for sample in samples])


SAMPLES = [outputs.sample(index, tokens, widths=TAPS) for index, tokens in ((7, 3), (2, 1), (4, 601))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_it_into_numpy(tmp_path, dtype):
    (tmp_path / "shard").write_bytes(written(SAMPLES, dtype))
    read = safetensors.numpy.load_file(tmp_path / "shard")
    assert set(read) == {"residual.2", "mlp.0", "norms", "sample_offsets", "sample_idx"} | set(SAMPLES[0].columns)
    for number, tap in enumerate(TAPS):
        values = read[f"{tap.site}.{tap.layer}"]
        assert (values.dtype, values.shape) == (np.dtype(dtype), (605, TAPS[tap]))
        assert np.array_equal(values, expected(SAMPLES, tap, dtype))
        assert np.array_equal(read["norms"][number], np.concatenate([norms_of(sample, tap) for sample in SAMPLES]))
    for name in SAMPLES[0].columns:
        assert np.array_equal(read[name], np.concatenate([sample.columns[name] for sample in SAMPLES]))
    assert read["sample_offsets"].tolist() == [0, 3, 4, 605]
    assert read["sample_idx"].tolist() == [7, 2, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_maps_it_into_torch(tmp_path, dtype):
    """An odd number of tokens: every tensor still begins at a multiple of the size of its
    numbers."""
    path = tmp_path / "shard"
    path.write_bytes(written(SAMPLES, dtype))
    with safe_open(path, framework="pt") as file:
        for tap in TAPS:
            values = file.get_tensor(f"{tap.site}.{tap.layer}")
            assert values.dtype == DTYPES[dtype]
            assert np.array_equal(values.to(torch.float32).numpy(), expected(SAMPLES, tap, dtype).astype(np.float32))
        assert file.get_tensor("sample_offsets").tolist() == [0, 3, 4, 605]
        assert file.get_slice("mlp.0")[3:4].shape == (1, 6)


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
    assert metadata == {"format": "layertap-activations", "format_version": "2", **ABOUT}


def bare(index: int, tokens: int, text: str) -> Sample:
    rng = np.random.default_rng(index)
    activations = {tap: rng.standard_normal((tokens, width), np.float32) for tap, width in TAPS.items()}
    return Sample(index, text, text, token_columns(np.arange(tokens, dtype=np.int32), {0}), {}, activations)


texts = st.text(st.characters(codec=None), max_size=70)  # half a surrogate pair may come from JSON
sample_lists = st.lists(st.builds(bare, st.integers(0, 2**40), st.integers(0, 6), texts), min_size=1, max_size=5)


@given(sample_lists, st.sampled_from(list(DTYPES)))
def test_the_data_is_aligned_and_comes_back_whatever_the_samples(samples, dtype):
    content = written(samples, dtype)
    assert content == written([bare(it.sample_idx, it.tokens, it.task_id) for it in samples], dtype)
    read = parse_tensors(content, "shard")
    assert read.data_start % 64 == 0
    for tap in TAPS:
        assert np.array_equal(read.tensors[f"{tap.site}.{tap.layer}"], expected(samples, tap, dtype))
    assert json.loads(read.metadata["samples"])[-1]["text_preview"] == samples[-1].text_preview
    assert safetensors.torch.load(content)["sample_idx"].tolist() == [sample.sample_idx for sample in samples]


def test_a_header_that_no_reader_would_take_is_refused(monkeypatch):
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(StorageError, match="lower --shard_size_gb"):
        written(SAMPLES * 3)


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
        lambda header: header["mlp.0"].update(dtype="F8_E5M2"),
        lambda header: header["mlp.0"].update(data_offsets=[0, 8]),
        lambda header: header["mlp.0"].update(data_offsets=[0]),
        lambda header: header["mlp.0"].update(shape=["x", 6]),
        lambda header: header["mlp.0"].update(shape=[-605, -6]),
        lambda header: header.update(norms=7),
        lambda header: header["__metadata__"].update(layer=2),
        lambda header: header.update(__metadata__=[]),
    ],
)
def test_a_header_that_is_not_right_is_refused(edit):
    with pytest.raises(DamageError, match="shard: "):
        parse_tensors(with_header(written(SAMPLES), edit), "shard")


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
        parse_tensors(damage(written(SAMPLES)), "shard")
