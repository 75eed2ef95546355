"""The end of a run says how long it waited for its output, and what would help."""

from dataclasses import replace
from pathlib import Path

import outputs
import pytest
from runs import small_run

from layertap.pipeline import bottleneck
from layertap.pipeline.bottleneck import describe_bottleneck
from layertap.pipeline.run import extract
from layertap.shards.manifest import Manifest

ENCODING = {"encoding": 60.0, "storing": 20.0, "uploading": 0.0}
STORING = {"encoding": 5.0, "storing": 60.0, "uploading": 0.0}
UPLOADING = {"encoding": 5.0, "storing": 20.0, "uploading": 60.0}


def manifest(name: str = "pickle", dtype: str = "float32", **config: object) -> Manifest:
    given = {"compute_dtype": "bfloat16", "compress_shards": True} | config
    return outputs.manifest(outputs.shard_format(dtype=dtype, name=name), config=given)


def test_a_run_of_compressed_pickles_is_told_of_every_remedy() -> None:
    said = describe_bottleneck(manifest(), ENCODING, waited=50.0, working=100.0)
    assert said.startswith("writing was the bottleneck: 50% of the time went into waiting for it (encoding 60.0 s,")
    for remedy in ("--format safetensors", "holds all that this run computes", "--layers_to_extract", "--keep_tokens"):
        assert remedy in said
    assert said.endswith("more cores")
    assert "disk" not in said


@pytest.mark.parametrize(
    ("spent", "told", "untold"),
    [
        (STORING, "a faster disk", "cores;"),
        (UPLOADING, "more --uploads_at_once", "a faster disk"),
    ],
)
def test_what_helps_follows_from_what_took_longest(spent, told, untold) -> None:
    said = describe_bottleneck(manifest(), spent, waited=90.0, working=100.0)
    assert told in said
    assert untold not in said
    assert "--format safetensors" not in said


@pytest.mark.parametrize("installed", [True, False])
def test_numba_is_advised_where_it_is_missing(monkeypatch, installed) -> None:
    monkeypatch.setattr(bottleneck, "find_spec", lambda name: object() if installed else None)
    said = describe_bottleneck(manifest("safetensors"), ENCODING, waited=50.0, working=100.0)
    assert ("numba, which encodes large shards 1.5 to 4 times as fast: " in said) is not installed
    assert ("[fast]" in said) is not installed
    assert "numba" not in describe_bottleneck(manifest("safetensors"), STORING, waited=50.0, working=100.0)
    assert "numba" not in describe_bottleneck(manifest(), ENCODING, waited=50.0, working=100.0)  # gzip takes longest


def test_where_a_bucket_takes_the_shards_no_disk_is_advised() -> None:
    said = describe_bottleneck(manifest(output_dir="gs://bucket/run"), STORING, waited=90.0, working=100.0)
    assert "more --uploads_at_once" in said
    assert "disk" not in said


def test_what_is_done_already_is_not_advised() -> None:
    done = replace(manifest("safetensors", "bfloat16"), identity={"storage": {"keep_tokens": ["answer"]}})
    said = describe_bottleneck(done, ENCODING, waited=50.0, working=100.0)
    for remedy in ("--format", "--storage_dtype", "--keep_tokens"):
        assert remedy not in said
    assert "--format" not in describe_bottleneck(manifest(compress_shards=False), ENCODING, 50.0, 100.0)
    rounded = describe_bottleneck(manifest(compute_dtype="float32"), ENCODING, 50.0, 100.0)
    assert "half the bytes;" in rounded


@pytest.mark.parametrize(("waited", "working"), [(4.9, 5.0), (24.0, 100.0), (0.0, 100.0)])
def test_a_run_that_hardly_waited_is_told_nothing(waited, working) -> None:
    assert describe_bottleneck(manifest(), ENCODING, waited, working) == ""


def test_a_run_knows_what_its_output_took(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> None:
    summary = extract(small_run(few_tasks, tiny_model, tmp_path))
    assert summary.writing["encoding"] > 0
    assert summary.writing["storing"] > 0
    assert summary.writing["uploading"] < summary.writing["storing"]
