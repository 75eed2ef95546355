"""Whole runs in this process: what they write, where they stop, how they go on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import pytest
import shards

from layertap.config import ExtractConfig
from layertap.errors import BadTaskError, DamageError, ModelError, OverlongError, RunMismatchError, StorageError
from layertap.extract.run import extract
from layertap.store.verify import verify
from layertap.tap import Tap


@pytest.fixture
def config(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return ExtractConfig(
        dataset_path=str(demo_tasks),
        model_path=str(tiny_model),
        predictions_per_task=2,
        prompt_version="output-from-examples-v1",
        row_length=1024,
        batch_size=2,
        max_seq_length=4096,
        window_samples=10,
        layers_to_extract=(1, 3),
        output_dir=str(tmp_path / "out"),
        checkpoint_dir=str(tmp_path / "checkpoints"),
        shard_size_gb=0.001,
    )


def changed(config: ExtractConfig, **changes: Any) -> ExtractConfig:
    return dataclasses.replace(config, **changes)


def out(config: ExtractConfig) -> Path:
    return Path(config.output_dir)


def manifest(config: ExtractConfig) -> dict[str, Any]:
    return json.loads((out(config) / "metadata.json").read_text())


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def test_every_sample_is_written_once_with_its_own_tokens(config: ExtractConfig) -> None:
    summary = extract(config)
    found = shards.samples(out(config), layer=1)
    assert sorted(found) == list(range(summary.samples))
    assert len(manifest(config)["shards"]) > 3
    for entry in found.values():
        assert entry["activation"].shape == entry["shape"] == (len(entry["token_ids"]), 64)
        assert entry["activation"].dtype == np.float32
    assert len({entry["task_id"] for entry in found.values()}) == 10
    assert verify(out(config)).sound


def test_activations_are_those_of_transformers(config: ExtractConfig, tiny_model: Path) -> None:
    exact = changed(config, compute_dtype="float32", max_tasks=2, activation_type=("residual", "mlp", "attn"))
    extract(exact)
    for site in ("residual", "mlp", "attn"):
        for layer in (1, 3):
            for entry in shards.samples(out(exact) / site, layer).values():
                truth = huggingface.activations(tiny_model, entry["token_ids"].tolist())[Tap(layer, site)]
                assert huggingface.relative_errors(entry["activation"], truth).max() <= 1e-4


def test_shards_stay_below_their_size_and_the_manifest_names_each(config: ExtractConfig) -> None:
    extract(config)
    for shard in manifest(config)["shards"]:
        assert shard["tokens"] * 2 * 64 * 4 <= 1_000_000 or shard["samples"] == 1
        for file in shard["files"]:
            assert (out(config) / file["path"]).stat().st_size == file["bytes"]


def test_the_same_run_twice_gives_the_same_bytes(config: ExtractConfig, tmp_path: Path, monkeypatch) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        extract(changed(config, output_dir="out", checkpoint_dir="checkpoints"))
        written.append(shards.contents(tmp_path / name))
    assert len(written[0]) > 4
    # the checkpoint alone says where its output lies
    checkpoints = [json.loads(files.pop("checkpoints/checkpoint_worker_0.json")) for files in written]
    assert checkpoints[0] == checkpoints[1] | {"output_dir": checkpoints[0]["output_dir"]}
    assert written[0] == written[1]


def test_a_run_stopped_after_each_shard_ends_with_the_same_bytes(config: ExtractConfig, tmp_path: Path) -> None:
    """What a kill leaves is a manifest with fewer shards; test_kill.py kills in earnest."""
    extract(config)
    whole = shards.contents(out(config))
    document = manifest(config)
    text = (out(config) / "metadata.json").read_text()
    count = len(document["shards"])
    for kept in (0, 1, count // 2, count - 1):
        partial = changed(config, output_dir=str(tmp_path / f"kept{kept}"), checkpoint_dir=str(tmp_path / f"ck{kept}"))
        stopped = extract_some(partial, kept)
        assert len(stopped["shards"]) == kept
        extract(partial)
        resumed = shards.contents(out(partial))
        resumed["metadata.json"] = resumed["metadata.json"].replace(str(tmp_path / f"kept{kept}").encode(), b"OUT")
        expected = dict(whole)
        expected["metadata.json"] = text.replace(str(out(config)), "OUT").encode()
        assert strip_paths(resumed) == strip_paths(expected)


def strip_paths(files: dict[str, bytes]) -> dict[str, Any]:
    """The files, the manifest without the paths that the settings name."""
    document = json.loads(files["metadata.json"])
    del document["config"]["output_dir"], document["config"]["checkpoint_dir"]
    return {**files, "metadata.json": document}


def extract_some(config: ExtractConfig, count: int) -> dict[str, Any]:
    """Run, and be interrupted as the commit after `count` shards begins."""
    from layertap.store.writer import ShardWriter

    commit = ShardWriter.commit

    def interrupted(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        if len(self.manifest.shards) == count:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    path = out(config) / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {"shards": []}


def test_a_complete_run_is_left_alone(config: ExtractConfig) -> None:
    extract(config)
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
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"worker_id": 3}, "worker_id: 0 there, 3 now"),
        ({"storage_dtype": "float16"}, "storage.dtype"),
        ({"prompt_version": "output-from-examples-v0"}, "prompt_version"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(config: ExtractConfig, change: dict[str, Any], named: str) -> None:
    extract(config)
    before = shards.contents(out(config))
    with pytest.raises(RunMismatchError) as raised:
        extract(changed(config, **change))
    assert named in str(raised.value)
    assert shards.contents(out(config)) == before


def test_another_model_is_refused(config: ExtractConfig, tmp_path: Path) -> None:
    from layertap.demo.checkpoint import write_checkpoint

    extract(config)
    write_checkpoint(tmp_path / "other", "tiny", seed=1)
    with pytest.raises(RunMismatchError, match=r"model\.weights"):
        extract(changed(config, model_path=str(tmp_path / "other")))


def test_another_dataset_is_refused(config: ExtractConfig, tmp_path: Path) -> None:
    extract_some(config, 2)
    tasks = lines(config.dataset_path)
    swapped = tmp_path / "swapped.jsonl"
    swapped.write_text("\n".join(reversed(tasks)))
    with pytest.raises(RunMismatchError, match="not those that were extracted"):
        extract(changed(config, dataset_path=str(swapped)))


def test_a_dataset_that_grew_after_the_run_is_refused(config: ExtractConfig, tmp_path: Path) -> None:
    tasks = lines(config.dataset_path)
    grown = tmp_path / "grown.jsonl"
    grown.write_text("\n".join(tasks[:-1]))
    extract(changed(config, dataset_path=str(grown)))
    grown.write_text("\n".join(tasks))
    with pytest.raises(RunMismatchError, match="more tasks now"):
        extract(changed(config, dataset_path=str(grown)))


def test_without_checkpointing_nothing_is_resumed_or_overwritten(config: ExtractConfig) -> None:
    alone = changed(config, checkpointing=False)
    extract(alone)
    assert not Path(config.checkpoint_dir).exists()
    with pytest.raises(RunMismatchError, match="no_checkpointing"):
        extract(alone)


def test_lost_output_is_not_begun_anew_in_silence(config: ExtractConfig) -> None:
    extract(config)
    (out(config) / "metadata.json").unlink()
    with pytest.raises(StorageError, match="knows of"):
        extract(config)


def test_a_lost_shard_stops_the_resume(config: ExtractConfig) -> None:
    extract_some(config, 2)
    (out(config) / "shard_0001.pkl.gz").unlink()
    with pytest.raises(DamageError, match=r"shard_0001\.pkl\.gz: is gone"):
        extract(config)


def test_machines_share_the_dataset_and_agree_on_numbers(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    whole = shards.samples(out(config), layer=3)
    union: dict[int, Any] = {}
    for machine in range(3):
        share = changed(
            config, machine_id=machine, total_machines=3, worker_id=machine, output_dir=str(tmp_path / f"m{machine}")
        )
        extract(share)
        part = shards.samples(out(share), layer=3)
        assert part
        assert not union.keys() & part.keys()
        union |= part
    assert union.keys() == whole.keys()
    for index, entry in whole.items():
        assert union[index]["task_id"] == entry["task_id"]
        assert np.array_equal(union[index]["token_ids"], entry["token_ids"])
        error = huggingface.relative_errors(union[index]["activation"], entry["activation"])
        assert error.max() < 0.05  # bfloat16 products in rows of other lengths


def with_bad_line(config: ExtractConfig, tmp_path: Path, number: int) -> tuple[ExtractConfig, Path, list[str]]:
    tasks = lines(config.dataset_path)
    path = tmp_path / "bad.jsonl"
    ragged = json.loads(tasks[number])
    ragged["train"][0]["input"][0].append(1)
    path.write_text("\n".join([*tasks[:number], json.dumps(ragged), *tasks[number + 1 :]]) + "\n")
    return changed(config, dataset_path=str(path)), path, tasks


def test_a_bad_task_stops_the_run_before_its_window_and_a_repair_goes_on(config: ExtractConfig, tmp_path: Path) -> None:
    bad, path, tasks = with_bad_line(config, tmp_path, 8)
    with pytest.raises(BadTaskError) as raised:
        extract(bad)
    for part in ("bad.jsonl", "line 9", json.loads(tasks[8])["task_id"], "row"):
        assert part in str(raised.value)
    committed = manifest(bad)
    assert committed["shards"]
    assert not committed["complete"]
    assert all(last < 8 * 4 for shard in committed["shards"] for _, last in shard["sample_idx"])
    assert not list(out(bad).rglob("*.partial"))
    path.write_text("\n".join(tasks) + "\n")
    extract(bad)
    extract(changed(config, output_dir=str(tmp_path / "plain"), checkpoint_dir=str(tmp_path / "plain_ck")))
    repaired, plain = shards.contents(out(bad)), shards.contents(tmp_path / "plain")
    del repaired["metadata.json"], plain["metadata.json"]
    assert repaired == plain


def test_a_bad_task_can_be_skipped_and_is_listed(config: ExtractConfig, tmp_path: Path) -> None:
    bad, _, tasks = with_bad_line(config, tmp_path, 3)
    extract(changed(bad, on_bad_task="skip"))
    skipped = manifest(bad)["progress"]["skipped_tasks"]
    assert skipped["count"] == 1
    assert skipped["list"][0]["task_id"] == json.loads(tasks[3])["task_id"]
    assert "line 4" in skipped["list"][0]["where"]
    found = shards.samples(out(bad), layer=1)
    assert sorted(found) == list(range(len(found)))


def test_a_bad_task_in_the_first_window_writes_nothing(config: ExtractConfig, tmp_path: Path) -> None:
    bad, _, _ = with_bad_line(config, tmp_path, 0)
    with pytest.raises(BadTaskError):
        extract(bad)
    assert not shards.contents(out(bad))


def test_an_overlong_sample_stops_the_run(config: ExtractConfig) -> None:
    with pytest.raises(OverlongError, match=r"task demo_.*tokens, but --max_seq_length is 300"):
        extract(changed(config, max_seq_length=300))


def test_overlong_samples_can_be_skipped(config: ExtractConfig) -> None:
    limited = changed(config, max_seq_length=700, overlong="skip")
    extract(limited)
    listed = manifest(limited)["progress"]["overlong_samples"]
    found = shards.samples(out(limited), layer=1)
    assert listed["count"] == len(listed["list"]) > 0
    assert all(entry["tokens"] > 700 and entry["action"] == "skipped" for entry in listed["list"])
    assert not {entry["sample_idx"] for entry in listed["list"]} & found.keys()
    assert all(len(entry["token_ids"]) <= 700 for entry in found.values())


def test_overlong_samples_can_be_cut_at_their_end(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    whole = shards.samples(out(config), layer=1)
    limited = changed(config, max_seq_length=700, overlong="truncate", output_dir=str(tmp_path / "cut"))
    extract(limited)
    cut = shards.samples(out(limited), layer=1)
    assert cut.keys() == whole.keys()
    for index, entry in cut.items():
        assert np.array_equal(entry["token_ids"], whole[index]["token_ids"][:700])
    assert manifest(limited)["progress"]["overlong_samples"]["count"] > 0


def test_an_impossible_layer_is_refused_with_the_range(config: ExtractConfig) -> None:
    with pytest.raises(ModelError, match=r"--layers_to_extract 4 9: .* has layers 0 to 3"):
        extract(changed(config, layers_to_extract=(1, 4, 9)))


def test_plain_text_is_extracted_as_it_stands(config: ExtractConfig, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document number {number}, in words."}) + "\n" for number in range(7)))
    text = changed(config, dataset_path=str(path))
    assert extract(text).samples == 7
    assert shards.samples(out(text), layer=1)[3]["text_preview"] == "Document number 3, in words."


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16"])
def test_other_storage_dtypes_hold_the_same_values(config: ExtractConfig, tmp_path: Path, storage_dtype: str) -> None:
    extract(config)
    other = changed(config, storage_dtype=storage_dtype, output_dir=str(tmp_path / "other"))
    extract(other)
    exact, rounded = shards.samples(out(config), 3), shards.samples(out(other), 3)
    for index, entry in exact.items():
        assert rounded[index]["activation"].dtype.name == storage_dtype
        assert np.allclose(entry["activation"], rounded[index]["activation"].astype(np.float32), rtol=1e-2, atol=1e-4)


def test_uncompressed_shards_hold_the_same_samples(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    plain = changed(config, compress_shards=False, output_dir=str(tmp_path / "plain"))
    extract(plain)
    assert (out(plain) / "shard_0001.pkl").exists()
    for index, entry in shards.samples(out(config), 1).items():
        assert np.array_equal(entry["activation"], shards.samples(out(plain), 1)[index]["activation"])


def test_a_second_run_in_the_same_folder_waits_outside(config: ExtractConfig) -> None:
    from layertap.store.lock import exclusive

    with exclusive(out(config)), pytest.raises(StorageError, match="another run is writing here"):
        extract(config)
