"""Where a run continues, and where it refuses to."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shards
from adapters import write_by_hand
from runs import changed, extract_some, finished, lines, manifest, out

from layertap.config.extract import ExtractConfig, FormatName
from layertap.demo.checkpoint import write_checkpoint
from layertap.errors import DamageError, RunMismatchError, StorageError, UsageError
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.run import extract


@pytest.mark.whole
@pytest.mark.parametrize("name", ["pickle", "safetensors"])
def test_a_run_stopped_after_each_shard_ends_with_the_same_bytes(
    config: ExtractConfig, tmp_path: Path, name: FormatName
) -> None:
    """What a kill leaves is a manifest with fewer shards; test_kill.py kills real processes."""
    config = changed(config, format=name)
    finished(config)
    whole, count = strip_paths(shards.contents(out(config))), len(manifest(config)["shards"])
    for kept in (0, 1, count // 2, count - 1):
        partial = changed(config, output_dir=str(tmp_path / f"kept{kept}"), checkpoint_dir=str(tmp_path / f"ck{kept}"))
        assert len(extract_some(partial, kept)["shards"]) == kept
        extract(partial)
        assert strip_paths(shards.contents(out(partial))) == whole


def strip_paths(files: dict[str, bytes]) -> dict[str, Any]:
    """The files of an output; its manifest is without the paths that the settings name."""
    document = json.loads(files["metadata.json"])
    del document["config"]["output_dir"], document["config"]["checkpoint_dir"]
    return {**files, "metadata.json": json.dumps(document)}


def test_a_complete_run_is_left_alone(config: ExtractConfig) -> None:
    finished(config)
    before = shards.contents(out(config))
    summary = extract(config)
    assert summary.samples == 0
    assert shards.contents(out(config)) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"random_seed": 7}, "random_seed: 42 there, 7 now"),
        ({"layers_to_extract": (1,)}, "layers"),
        ({"compute_dtype": "float32"}, "compute_dtype"),
        ({"activation_type": ("mlp",)}, "sites"),
        ({"activation_type": ("residual_in",)}, "sites"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"worker_id": 3}, "worker_id: 0 there, 3 now"),
        ({"storage_dtype": "float16"}, "storage.dtype"),
        ({"format": "safetensors"}, "storage.format: pickle there, safetensors now"),
        ({"prompt_version": "output-from-examples-v0"}, "prompt_version"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(config: ExtractConfig, change: dict[str, Any], named: str) -> None:
    finished(config)
    before = shards.contents(out(config))
    with pytest.raises(RunMismatchError) as raised:
        extract(changed(config, **change))
    assert named in str(raised.value)
    assert "model.weights" not in str(raised.value)  # it is the same model
    assert shards.contents(out(config)) == before


@pytest.mark.whole
def test_a_model_that_was_moved_changes_no_byte(config: ExtractConfig, tmp_path: Path) -> None:
    config = changed(config, format="safetensors")
    finished(config)
    whole = shards.contents(out(config))
    (tmp_path / "moved").symlink_to(config.model_path)
    (out(config)).rename(tmp_path / "whole")
    shutil.rmtree(config.checkpoint_dir)
    extract_some(config, 2)
    extract(changed(config, model_path=str(tmp_path / "moved")))
    assert shards.contents(out(config)) == whole


def test_another_model_is_refused(config: ExtractConfig, tmp_path: Path) -> None:
    finished(config)
    write_checkpoint(tmp_path / "other", "tiny", seed=1)
    with pytest.raises(RunMismatchError, match=r"model\.weights"):
        extract(changed(config, model_path=str(tmp_path / "other")))


@pytest.mark.whole
def test_an_adapter_is_another_run_and_changes_what_comes_after_it(
    config: ExtractConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, layers_to_extract=(0, 1), max_tasks=2)
    finished(config)
    one, two = (write_by_hand(tmp_path / name, lora_alpha=alpha) for name, alpha in (("one", 4), ("two", 5)))
    with pytest.raises(RunMismatchError, match=r"model\.adapters: None there, \["):
        extract(changed(config, adapter=(str(one),)))
    own = changed(config, adapter=(str(one),), output_dir=str(tmp_path / "own"))
    capsys.readouterr()
    extract(own)
    assert (
        f"{config.model_path} with adapter {one}: saving residual of layers 0, 1; running 2 of 4 layers"
        in capsys.readouterr().err
    )
    with pytest.raises(RunMismatchError, match=r"model\.adapters"):
        extract(changed(own, adapter=(str(two),)))
    with pytest.raises(RunMismatchError, match=r"model\.adapters"):
        extract(changed(own, adapter=()))
    assert extract(changed(own, adapter=(str(shutil.copytree(one, tmp_path / "moved")),))).samples == 0
    for layer, same in ((0, True), (1, False)):
        plain, adapted = (shards.samples(folder, layer) for folder in (out(config), out(own)))
        assert all(np.array_equal(plain[it]["activation"], adapted[it]["activation"]) is same for it in plain)


def test_another_dataset_is_refused(config: ExtractConfig, tmp_path: Path) -> None:
    extract_some(config, 2)
    tasks = lines(config.dataset_path)
    swapped = tmp_path / "swapped.jsonl"
    swapped.write_text("\n".join(reversed(tasks)))
    with pytest.raises(RunMismatchError, match="not those that were extracted"):
        extract(changed(config, dataset_path=str(swapped)))


@pytest.mark.parametrize("others", [[], [False]], ids=["alone", "beside a host that is not complete"])
def test_a_dataset_that_grew_after_the_run_is_refused(
    config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[bool]
) -> None:
    tasks = lines(config.dataset_path)
    grown = tmp_path / "grown.jsonl"
    grown.write_text("\n".join(tasks[:-1]))
    extract(changed(config, dataset_path=str(grown)))
    grown.write_text("\n".join(tasks))
    gather = Hosts.gather
    completions = [[True], *([complete] for complete in others)]
    monkeypatch.setattr(
        Hosts, "gather", lambda self, told: np.array(completions) if told == [True] else gather(self, told)
    )
    with pytest.raises(RunMismatchError, match="more tasks now"):
        extract(changed(config, dataset_path=str(grown)))


def test_without_checkpointing_nothing_is_resumed_or_overwritten(config: ExtractConfig) -> None:
    alone = changed(config, checkpointing=False)
    extract(alone)
    assert not Path(config.checkpoint_dir).exists()
    with pytest.raises(RunMismatchError, match="no_checkpointing"):
        extract(alone)


def test_lost_output_is_not_silently_begun_again(config: ExtractConfig) -> None:
    finished(config)
    (out(config) / "metadata.json").unlink()
    with pytest.raises(StorageError, match="knows of"):
        extract(config)


def test_a_lost_shard_stops_the_resume(config: ExtractConfig) -> None:
    extract_some(config, 2)
    (out(config) / "shard_0001.pkl.gz").unlink()
    with pytest.raises(DamageError, match=r"shard_0001\.pkl\.gz: is gone"):
        extract(config)


def test_lost_manifest_is_noticed_without_a_checkpoint_too(config: ExtractConfig, tmp_path: Path) -> None:
    finished(config)
    (out(config) / "metadata.json").unlink()
    with pytest.raises(StorageError, match=r"shards but no metadata\.json"):
        extract(changed(config, checkpoint_dir=str(tmp_path / "elsewhere")))


@pytest.mark.whole
def test_two_runs_may_share_a_checkpoint_folder(config: ExtractConfig, tmp_path: Path) -> None:
    extract_some(config, 2)
    other = changed(config, output_dir=str(tmp_path / "other"), random_seed=1)
    extract_some(other, 3)
    for run in (config, other):
        extract(run)
        assert manifest(run)["complete"]


@pytest.mark.parametrize("content", ["[", "{}", '{"shards": 3}', "null"])
def test_a_damaged_checkpoint_is_refused(config: ExtractConfig, content: str) -> None:
    extract_some(config, 1)
    (path,) = Path(config.checkpoint_dir).iterdir()
    path.write_text(content)
    with pytest.raises(DamageError, match=r"checkpoint_worker_0\.json: is not a checkpoint"):
        extract(config)


def test_a_checkpoint_that_cannot_be_read_is_refused(config: ExtractConfig) -> None:
    (Path(config.checkpoint_dir) / "checkpoint_worker_0.json").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read"):
        extract(config)


@pytest.mark.whole
def test_what_was_left_out_is_listed_once_its_window_is_begun(config: ExtractConfig) -> None:
    cut = changed(config, max_seq_length=1200, overlong="skip", window_samples=100)
    partial = extract_some(cut, 2)["progress"]["overlong_samples"]
    assert partial["count"] > 0
    extract(cut)
    assert manifest(cut)["progress"]["overlong_samples"] == partial
