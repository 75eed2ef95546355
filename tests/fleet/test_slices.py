"""Two hosts as one worker on a sharded dataset in a bucket: the "Multi-Host TPU" command."""

import json
import time
from pathlib import Path

import commands
import numpy as np
import pytest
import shards
import slices
from fakes.gcs import FakeGcs

from layertap.cli import main
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.objects import open_store

HOSTS = 2
DATASET = "gs://bucket/sharded_dataset"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, make_tasks(18, seed=1))
    return path


def settings(model: Path) -> list[str]:
    small = {
        "model_path": model,
        "predictions_per_task": 2,
        "row_length": 1024,
        "batch_size": 2,
        "window_samples": 8,
        "compute_dtype": "float32",
        "shard_size_gb": 0.001,
        "layers_to_extract": 1,
    }
    return [part for name, value in small.items() for part in (f"--{name}", str(value))]


def printed(model: Path, output: Path) -> list[str]:
    """The flags as printed, but for the meeting place, with a model of ours and small settings."""
    claims = ["--use_sharded_dataset", "--sharded_dataset_dir", DATASET, "--gcs_bucket", "bucket"]
    return [*settings(model), *claims, "--lease_seconds", "10", "--output_dir", str(output), "--mesh", "data=2,fsdp=2"]


def done_manifests() -> list[dict]:
    store = open_store(DATASET)
    try:
        found = [store.read(info.name) for info in store.list("done/")]
    finally:
        store.close()
    return [json.loads(one.data) for one in found if one is not None]


def extracted(output: Path) -> dict[int, np.ndarray]:
    """sample_idx -> activations, of what the done-manifests name; fails if a sample is there
    twice."""
    found: dict[int, np.ndarray] = {}
    for done in done_manifests():
        assert len(done["hosts"]) == HOSTS
        for host, outcome in enumerate(done["hosts"]):
            below = f"tpu_0_host_{host}/{done['shard']}/{done['attempt']}"
            assert outcome["output"] == f"gs://bucket/activations/{below}"
            for index, entry in shards.samples(output / below, 1).items():
                assert index not in found
                found[index] = entry["activation"]
    return found


def alone(model: Path, tasks: Path, folder: Path) -> dict[int, np.ndarray]:
    flags = ["--dataset_path", str(tasks), *settings(model), "--output_dir", str(folder / "alone")]
    done = commands.run(["-m", "layertap", "extract", *flags], folder)
    assert done.returncode == 0, done.stderr
    return {index: entry["activation"] for index, entry in shards.samples(folder / "alone", 1).items()}


def assert_same(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for index, value in expected.items():
        np.testing.assert_allclose(found[index], value, rtol=1e-5, atol=1e-5, err_msg=str(index))


@pytest.mark.slow
def test_a_slice_extracts_a_sharded_dataset_and_goes_on_after_a_loss(
    tiny_model: Path, tasks: Path, tmp_path: Path, gcs: FakeGcs
) -> None:
    assert main(["shards", "create", "--dataset_path", str(tasks), "--output", DATASET, "--num_shards", "4"]) == 0
    output = tmp_path / "out"
    with slices.running(printed(tiny_model, output), tmp_path, HOSTS) as processes:
        deadline = time.monotonic() + 200
        while not done_manifests():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        slices.kill(processes[1])
        _, errors = processes[0].communicate(timeout=60)
    assert "host 1 was lost" in errors
    assert 0 < len(done_manifests()) < 4
    summaries = slices.run(printed(tiny_model, output), tmp_path, HOSTS)
    assert "worker 0" in summaries[0]
    assert len(done_manifests()) == 4
    assert_same(extracted(output), alone(tiny_model, tasks, tmp_path))


@pytest.mark.slow
def test_a_shard_that_no_host_can_extract_is_failed_and_the_others_are_done(
    tiny_model: Path, tasks: Path, tmp_path: Path, gcs: FakeGcs, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["shards", "create", "--dataset_path", str(tasks), "--output", DATASET, "--num_shards", "3"])
    flags = [*printed(tiny_model, tmp_path / "out"), "--max_seq_length", "1300"]
    with slices.running(flags, tmp_path, HOSTS) as processes:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    assert processes[0].returncode == 1
    assert "layertap shards reset" in errors[0].splitlines()[-1]
    main(["shards", "status", DATASET])
    status = capsys.readouterr().out
    assert "failed" in status
    assert "--max_seq_length is 1300" in status
