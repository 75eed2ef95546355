"""docs/formats.md describes what is written, and its reader reads it."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import outputs
import pytest
import shards
from safetensors import safe_open

from layertap.core.columns import COLUMNS, FIRST, PREFIX, SINK, SINK_FACTOR, SPECIAL
from layertap.core.taps import Tap
from layertap.shards.manifest import Manifest, ShardEntry, StoredFile
from layertap.shards.quantised import quantise

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
PICKLE_READER, SAFETENSORS_READER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

READ = """
import sys

activations, sample_idx = read_layer(sys.argv[1], 2)
assert "layertap" not in sys.modules
assert sys.argv[2] == "bfloat16" or "ml_dtypes" not in sys.modules
np.save(sys.argv[3], activations.astype("f4"))
np.save(sys.argv[4], sample_idx)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_reader_on_the_page_reads_pickles_without_layertap(tmp_path, dtype):
    samples = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 5))]
    form = outputs.shard_format(dtype=dtype)
    outputs.write(tmp_path, [samples], form)
    shard, activations, sample_idx = (tmp_path / name for name in ("shard_0001.pkl.gz", "read.npy", "index.npy"))
    command = [sys.executable, "-I", "-W", "error", "-c", PICKLE_READER + READ, shard, dtype, activations, sample_idx]
    subprocess.run(command, check=True)
    expected = [sample.activations[Tap(2, "residual")].astype(form.dtype) for sample in samples]
    assert np.array_equal(np.load(activations), np.concatenate(expected).astype(np.float32))
    assert np.load(sample_idx).tolist() == [7] * 3 + [2] * 5


READ_TENSORS = """
import sys

tensors, samples = read_shard(sys.argv[1])
assert not {"layertap", "safetensors", "ml_dtypes"} & {*sys.modules}
assert tensors["residual.0"].ctypes.data % 64 == 0
assert not tensors["residual.0"].flags.owndata
np.savez(sys.argv[2], **tensors, told=[json.dumps(sample) for sample in samples])
"""


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_codes_and_scales_are_read_as_the_page_says(tmp_path, dtype):
    samples = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 5))]
    outputs.write(tmp_path, [samples], outputs.shard_format(dtype=dtype, name="safetensors"))
    page = {"ml_dtypes": ml_dtypes}
    exec(SAFETENSORS_READER, page)
    page |= {"tensors": page["read_shard"](tmp_path / "shard_0001.safetensors")[0], "i": 1}
    (expression,) = re.findall(rf"^{dtype.removesuffix('fn')} +(tensors.*)$", PAGE, re.MULTILINE)
    values = eval(expression.replace("residual.12", "residual.2"), page)
    expected = [quantise(sample.activations[Tap(2, "residual")], np.dtype(dtype)).values for sample in samples]
    assert values.dtype == np.float32
    assert np.array_equal(values, np.concatenate(expected))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_reader_on_the_page_reads_safetensors_without_layertap(tmp_path, dtype):
    samples = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 5))]
    form = outputs.shard_format(dtype=dtype, name="safetensors")
    outputs.write(tmp_path, [samples], form)
    shard, found = tmp_path / "shard_0001.safetensors", tmp_path / "found.npz"
    command = [sys.executable, "-I", "-W", "error", "-c", SAFETENSORS_READER + READ_TENSORS, shard, found]
    subprocess.run(command, check=True)
    read = np.load(found)
    expected = np.concatenate([sample.activations[Tap(2, "residual")].astype(form.dtype) for sample in samples])
    found = read["residual.2"]
    widened = (found.astype("u4") << 16).view("f4") if dtype == "bfloat16" else found
    assert np.array_equal(widened, expected.astype(np.float32))
    assert np.array_equal(read["token_ids"], np.concatenate([sample.token_ids for sample in samples]))
    assert read["sample_offsets"].tolist() == [0, 3, 8]
    assert read["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert read["sample_idx"].tolist() == [7, 2]
    assert [json.loads(told)["text_preview"] for told in read["told"]] == ["prompt 7", "prompt 2"]


@pytest.mark.parametrize(
    ("reader", "lines", "packages"),
    [(PICKLE_READER, 12, ["gzip", "pickle", "numpy"]), (SAFETENSORS_READER, 22, ["json", "numpy"])],
    ids=["pickle", "safetensors"],
)
def test_the_readers_are_short_and_need_numpy_alone(reader, lines, packages):
    assert len(reader.splitlines()) <= lines
    assert re.findall(r"^(?:import|from) (\w+)", reader, re.MULTILINE) == packages


def rows(heading: str) -> list[str]:
    """The keys of the table that follows `heading`."""
    table = PAGE[PAGE.index(heading) :].split("| --- |", 1)[1].split("\n\n", 1)[0]
    keys = [line.split("|")[1] for line in table.splitlines()[1:]]
    return [key for cell in keys for key in re.findall(r"`([\w.]+)`", cell)]


def test_the_page_lists_the_keys_of_a_sample_in_their_order(tmp_path):
    outputs.write(tmp_path, [[outputs.sample(0)]], outputs.shard_format())
    (entry,) = shards.read(tmp_path / "shard_0001.pkl.gz")[0]
    assert rows("## A shard of pickles") == list(entry)


def test_the_page_lists_the_tensors_and_the_metadata_of_a_file_in_their_order(tmp_path):
    outputs.write(tmp_path, [[outputs.sample(0)]], outputs.shard_format(dtype="int8", name="safetensors"))
    with (tmp_path / "shard_0001.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert rows("`__metadata__` holds strings only") == list(header.pop("__metadata__"))
    assert rows("The tensors, in this order") == ["residual.12", *(name for name in header if "." not in name)]


def test_the_page_lists_the_tensors_of_the_statistics_in_their_order(tmp_path):
    outputs.write(tmp_path, [[outputs.sample(0)]], outputs.shard_format())
    with safe_open(tmp_path / "statistics" / "shard_0001.safetensors", "numpy") as file:
        assert set(rows("## Statistics")) == set(file.keys())
        assert all(f"`{name}`" in PAGE[PAGE.index("## Statistics") :] for name in file.metadata())


def test_the_page_tells_the_flags_as_they_are():
    table = PAGE[PAGE.index("You filter by flags") :].split("| --- |", 1)[1].split("\n\n", 1)[0]
    values = [int(line.split("|")[2]) for line in table.splitlines()[1:]]
    assert values == [FIRST, SPECIAL, PREFIX]
    assert f"`sink_factor` ({SINK_FACTOR:.0f})" in PAGE
    assert f"Flags have a third bit, {SINK}," in PAGE


def test_the_page_lists_the_columns_as_they_are():
    table = PAGE[PAGE.index("## Columns") :].split("| --- |", 1)[1].split("\n\n", 1)[0]
    told = {line.split("`")[1]: line.split("|")[2].strip() for line in table.splitlines()[1:]}
    assert told == {name: dtype.name for name, dtype in COLUMNS.items()}


@pytest.mark.parametrize(
    ("heading", "kind", "more"),
    [
        ("`metadata.json` is the head", Manifest, {"totals", "shards_crc32c"}),
        ("One shard is one line:", ShardEntry, set()),
    ],
)
def test_the_page_lists_every_key_of_the_manifest(heading, kind, more):
    listed = {field.name for field in dataclasses.fields(kind)} | more
    assert set(rows(heading)) == listed - ({"shards"} if kind is Manifest else set())


def test_the_page_lists_every_key_of_a_file():
    sentence = PAGE[PAGE.index("One file:") :].split("\n\n", 1)[0]
    assert {field.name for field in dataclasses.fields(StoredFile)} - {"layer"} <= set(re.findall(r"`(\w+)`", sentence))
