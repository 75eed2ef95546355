"""docs/formats.md says what is written, and the reader in it reads it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import outputs
import pytest
import shards

from layertap.store.manifest import Manifest, ShardEntry, StoredFile
from layertap.tap import Tap

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
READER = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)

READ = """
import sys

activations, sample_idx = read_layer(sys.argv[1], 2)
assert "layertap" not in sys.modules
assert sys.argv[2] == "bfloat16" or "ml_dtypes" not in sys.modules
np.save(sys.argv[3], activations.astype("f4"))
np.save(sys.argv[4], sample_idx)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_reader_on_the_page_reads_a_shard_without_layertap(tmp_path, dtype):
    samples = [outputs.sample(index, tokens) for index, tokens in ((7, 3), (2, 5))]
    form = outputs.shard_format(dtype=dtype)
    outputs.write(tmp_path, [samples], form)
    shard, activations, sample_idx = (tmp_path / name for name in ("shard_0001.pkl.gz", "read.npy", "index.npy"))
    command = [sys.executable, "-I", "-W", "error", "-c", READER + READ, shard, dtype, activations, sample_idx]
    subprocess.run(command, check=True)
    expected = [sample.activations[Tap(2, "residual")].astype(form.dtype) for sample in samples]
    assert np.array_equal(np.load(activations), np.concatenate(expected).astype(np.float32))
    assert np.load(sample_idx).tolist() == [7] * 3 + [2] * 5


def test_the_reader_is_twelve_lines_of_gzip_pickle_and_numpy():
    assert len(READER.splitlines()) <= 12
    assert re.findall(r"^(?:import|from) (\w+)", READER, re.MULTILINE) == ["gzip", "pickle", "numpy"]


def rows(heading: str) -> list[str]:
    """The keys of the table that follows `heading`."""
    table = PAGE[PAGE.index(heading) :].split("| --- |", 1)[1].split("\n\n", 1)[0]
    keys = [line.split("|")[1] for line in table.splitlines()[1:]]
    return [key for cell in keys for key in re.findall(r"`(\w+)`", cell)]


def test_the_page_lists_the_keys_of_a_sample_in_their_order(tmp_path):
    outputs.write(tmp_path, [[outputs.sample(0)]], outputs.shard_format())
    (entry,) = shards.read(tmp_path / "shard_0001.pkl.gz")[0]
    assert rows("## A shard") == list(entry)


@pytest.mark.parametrize(
    ("heading", "kind", "more"),
    [("## metadata.json", Manifest, {"format_version", "totals"}), ("One shard:", ShardEntry, set())],
)
def test_the_page_lists_every_key_of_the_manifest(heading, kind, more):
    assert set(rows(heading)) == {field.name for field in dataclasses.fields(kind)} | more


def test_the_page_lists_every_key_of_a_file():
    sentence = PAGE[PAGE.index("One file:") :].split("\n\n", 1)[0]
    assert {field.name for field in dataclasses.fields(StoredFile)} <= set(re.findall(r"`(\w+)`", sentence))
