"""The output of many workers, checked and read through its done-manifests; damage is named."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fleets import cut, union, worker_of
from runs import small_run

import layertap
from layertap.cli import main
from layertap.errors import UsageError
from layertap.fleet.worker import work
from layertap.objects import open_store


@pytest.fixture(scope="module")
def finished(tiny_model: Path, demo_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What two workers made from three shards: the dataset, and the folder with their output."""
    folder = tmp_path_factory.mktemp("finished")
    config = small_run(demo_tasks, tiny_model, folder, predictions_per_task=1, shard_size_gb=1.0)
    cut(demo_tasks, str(folder / "dataset"), 3)
    work(worker_of(config, str(folder / "dataset"), 0, max_shards=2))
    work(worker_of(config, str(folder / "dataset"), 1))
    done = [json.loads(path.read_text()) for path in (folder / "dataset" / "done").iterdir()]
    samples = sum(outcome["samples"] for outcome in done)
    return SimpleNamespace(dataset=folder / "dataset", output=folder / "out", samples=samples)


def verified(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    status = main(["verify", "--json", *map(str, arguments)])
    return status, json.loads(capsys.readouterr().out)


def attempt(output: Path, number: int) -> Path:
    """The folder of a shard's attempt."""
    return next(output.glob(f"tpu_*/shard_{number:05d}/*/metadata.json")).parent


def test_a_sharded_dataset_is_checked_by_its_done_manifests(finished, capsys) -> None:
    status, report = verified(capsys, finished.dataset)
    assert (status, report["sound"], report["complete"]) == (0, True, True)
    assert (report["folders"], report["samples"]) == (3, finished.samples)
    assert main(["verify", str(finished.dataset)]) == 0
    assert f"3 folders, 3 shards, {finished.samples} samples" in capsys.readouterr().out


def test_all_workers_below_a_folder_are_checked(finished, capsys) -> None:
    status, report = verified(capsys, finished.output)
    assert (status, report["folders"], report["samples"]) == (0, 3, finished.samples)


def put(gcs: FakeGcs, folder: Path, below: str) -> str:
    """The URL of a copy of a folder."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        gcs.put(BUCKET, f"{below}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"gs://{BUCKET}/{below}"


def test_all_workers_are_read_as_one_dataset_without_the_attempts_that_were_lost(
    finished, gcs: FakeGcs, tmp_path: Path
) -> None:
    output = tmp_path / "moved"
    shutil.copytree(finished.output, output)
    shutil.copytree(attempt(output, 0), output / "tpu_9/shard_00000/lost")
    with pytest.raises(UsageError, match="give sharded_dataset="):
        layertap.ActivationDataset(output)
    wanted = union(open_store(str(finished.dataset)), layer=3)
    for place in (str(finished.dataset), put(gcs, finished.dataset, "dataset")):
        dataset = layertap.ActivationDataset(output, sharded_dataset=place)
        assert sorted(sample.sample_idx for sample in dataset) == sorted(wanted)
        for sample in dataset:
            np.testing.assert_array_equal(sample.token_ids, wanted[sample.sample_idx]["token_ids"])
            np.testing.assert_array_equal(sample.activation(3), wanted[sample.sample_idx]["activation"])
        assert sum(map(len, dataset.batches(64, layers=[3]))) == dataset.tokens


def test_a_bucket_is_checked_as_a_folder_is(finished, gcs: FakeGcs, capsys) -> None:
    place, dataset = put(gcs, finished.output, "activations") + "/", put(gcs, finished.dataset, "dataset")
    for arguments in ((place,), (dataset,), (place, "--sharded_dataset", dataset)):
        status, report = verified(capsys, *arguments)
        assert (status, report["folders"], report["samples"]) == (0, 3, finished.samples)


def flip(output: Path, _dataset: Path) -> None:
    path = attempt(output, 1) / "shard_0001.pkl.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def edit_done(_output: Path, dataset: Path) -> None:
    path = dataset / "done" / "shard_00002.json"
    path.write_text(path.read_text().replace('"crc32c"', '"crc"'))


def swap(output: Path, _dataset: Path) -> None:
    one, other = attempt(output, 0), attempt(output, 1)
    one.rename(output / "kept")
    shutil.copytree(other, one)


def leave_unfinished(output: Path, _dataset: Path) -> None:
    path = attempt(output, 1) / "metadata.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))


DAMAGE = {
    "a flipped bit": (flip, "shard_00001", "CRC-32C"),
    "an output that is gone": (lambda output, _: shutil.rmtree(attempt(output, 1)), "shard_00001", "no such file"),
    "another shard's output": (swap, "shard_00000", "belongs to shard_00001, not to shard_00000"),
    "another manifest": (leave_unfinished, "shard_00001", "is not the one that done/shard_00001.json names"),
    "a damaged done-manifest": (edit_done, "done/shard_00002.json", "is not a valid done-manifest"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named_in_output_that_was_moved(finished, tmp_path: Path, capsys, kind: str) -> None:
    output, dataset = tmp_path / "moved", tmp_path / "dataset"
    shutil.copytree(finished.output, output)
    shutil.copytree(finished.dataset, dataset)
    assert verified(capsys, output, "--sharded_dataset", dataset)[0] == 0
    damage, place, words = DAMAGE[kind]
    damage(output, dataset)
    status, report = verified(capsys, output, "--sharded_dataset", dataset)
    assert (status, report["sound"]) == (1, False)
    findings = [
        *report["findings"],
        *(f"{one['folder']}: {line}" for one in report["reports"] for line in one["findings"]),
    ]
    assert [line for line in findings if place in line and words in line], findings
    assert main(["verify", str(output), "--sharded_dataset", str(dataset)]) == 1
    assert words in capsys.readouterr().out


def test_what_nobody_has_finished_is_no_damage(finished, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished.dataset, tmp_path / "dataset")
    (tmp_path / "dataset" / "done" / "shard_00002.json").unlink()
    status, report = verified(capsys, tmp_path / "dataset")
    assert (status, report["sound"], report["complete"]) == (0, True, False)
    assert report["unfinished"] == ["shard_00002: is not finished yet"]


def test_a_place_without_output_is_refused(tmp_path: Path, finished, capsys) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "not the output of a run" in capsys.readouterr().err
    assert main(["verify", str(finished.output), "--sharded_dataset", str(tmp_path)]) == 2
    assert "dataset.json" in capsys.readouterr().err
