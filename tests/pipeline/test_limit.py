"""`--max_tokens_total`: where a run stops, and how it continues."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shards
from runs import changed, extract_some, finished, manifest, out

from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig, HostsConfig
from layertap.config.sharded import ShardedConfig
from layertap.config.upload import UploadConfig
from layertap.errors import UsageError
from layertap.pipeline.run import extract


def stored(config: ExtractConfig) -> dict[int, Any]:
    """The samples of an output in their order."""
    return shards.samples(out(config), layer=1)


def tokens_of(samples: dict[int, Any]) -> list[int]:
    return [len(entry["token_ids"]) for entry in samples.values()]


@pytest.fixture
def whole(config: ExtractConfig) -> dict[int, Any]:
    """What the run stores without a limit."""
    finished(config)
    return stored(config)


@pytest.fixture
def limited(config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    folders = {name: str(tmp_path / "limited" / name) for name in ("output_dir", "checkpoint_dir")}
    return changed(config, **folders, max_tokens_total=5000)


@pytest.mark.whole
@pytest.mark.parametrize("beside", [-1, 0, 1])
@pytest.mark.parametrize("samples", [1, 4, 13])
def test_a_run_stops_with_the_sample_that_reaches_the_limit(
    whole: dict[int, Any], limited: ExtractConfig, samples: int, beside: int
) -> None:
    limit = sum(tokens_of(whole)[:samples]) + beside
    summary = extract(changed(limited, max_tokens_total=limit))
    found = stored(limited)
    assert list(found) == list(whole)[: samples + (beside > 0)]
    for index, entry in found.items():
        assert np.array_equal(entry["activation"], whole[index]["activation"])
    assert summary.manifest.complete
    assert manifest(limited)["progress"]["max_tokens_total"] == limit
    report = verify(out(limited))
    assert report.sound, report.findings
    assert f"complete, stopped at --max_tokens_total {limit}" in report.describe()
    assert f"stopped at --max_tokens_total {limit}; with more tokens" in summary.describe()


@pytest.mark.whole
def test_more_tokens_than_there_are_change_nothing(config: ExtractConfig, limited: ExtractConfig) -> None:
    finished(config)
    extract(changed(limited, max_tokens_total=10**9))
    whole, found = shards.contents(out(config)), shards.contents(out(limited))
    del whole["metadata.json"], found["metadata.json"]
    assert found == whole
    assert "max_tokens_total" not in manifest(limited)["progress"]


@pytest.mark.whole
def test_an_interruption_makes_no_difference(limited: ExtractConfig) -> None:
    finished(limited)
    whole, count = shards.contents(out(limited)), len(manifest(limited)["shards"])
    assert count > 2
    for kept in range(count):
        for path in sorted(out(limited).parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        extract_some(limited, kept)
        extract(limited)
        assert shards.contents(out(limited)) == whole


@pytest.mark.whole
@pytest.mark.parametrize("more", [9000, None])
def test_a_start_with_more_tokens_goes_on(whole: dict[int, Any], limited: ExtractConfig, more: int | None) -> None:
    extract(limited)
    first = shards.contents(out(limited))
    longer = changed(limited, max_tokens_total=more)
    extract(longer)
    found, direct = stored(limited), np.cumsum(tokens_of(whole))
    assert list(found) == list(whole)[: len(whole) if more is None else int(np.searchsorted(direct, more)) + 1]
    assert all(shards.contents(out(limited))[name] == first[name] for name in first if "shard_" in name)
    report = verify(out(limited))
    assert report.sound, report.findings
    assert report.manifest.stopped_at == more
    for less in (limited, longer):
        assert extract(less).samples == 0  # nothing is left to do


def test_what_is_stored_already_may_be_more_than_is_asked_for(limited: ExtractConfig) -> None:
    extract_some(changed(limited, max_tokens_total=None), 3)
    before = manifest(limited)["totals"]
    summary = extract(changed(limited, max_tokens_total=10))
    assert manifest(limited)["totals"] == before
    assert summary.manifest.stopped_at == 10
    assert verify(out(limited)).sound


def test_a_bad_task_behind_the_limit_is_not_met(limited: ExtractConfig, tmp_path: Path) -> None:
    tasks = Path(str(limited.dataset_path)).read_text()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(tasks * 3 + json.dumps({"train": [], "test": []}) + "\n")
    extract(changed(limited, dataset_path=str(bad), window_samples=5, max_tokens_total=2000))
    assert verify(out(limited)).sound


def test_a_sample_that_is_missing_before_is_found(limited: ExtractConfig) -> None:
    extract(changed(limited, window_samples=2))
    path = out(limited) / "metadata.json"
    document = json.loads(path.read_text())
    assert document["progress"]["sample_idx"] > 0
    document["progress"]["sample_idx"] += 100
    path.write_text(json.dumps(document))
    assert any("are in no shard" in finding for finding in verify(out(limited)).findings)


def test_it_is_refused_where_it_would_not_be_one_number(config: ExtractConfig) -> None:
    with pytest.raises(UsageError, match="--max_tokens_total does not work with --multihost"):
        changed(config, max_tokens_total=5, hosts=HostsConfig(multihost=True))
    with pytest.raises(UsageError, match="--max_tokens_total does not work with --sharded_dataset_dir"):
        changed(config, max_tokens_total=5, dataset_path=None, sharded=ShardedConfig(sharded_dataset_dir="there"))
    with pytest.raises(UsageError, match="--max_tokens_total must be at least 1"):
        changed(config, max_tokens_total=0)


@pytest.mark.whole
def test_a_copy_that_stopped_goes_on_from_another_machine(
    whole: dict[int, Any], limited: ExtractConfig, tmp_path: Path
) -> None:
    mirrored = changed(limited, upload=UploadConfig(upload_to=str(tmp_path / "far")))
    extract(mirrored)
    shutil.rmtree(out(limited).parent)
    extract(changed(mirrored, max_tokens_total=9000))
    report = verify(tmp_path / "far" / "tpu_0")
    assert report.sound, report.findings
    assert (report.manifest.stopped_at, report.manifest.tokens >= 9000) == (9000, True)
    extract(changed(mirrored, max_tokens_total=None))
    report = verify(tmp_path / "far" / "tpu_0")
    assert (report.sound, report.manifest.samples, report.manifest.stopped_at) == (True, len(whole), None)
