"""Two hosts as one worker on a sharded dataset in a bucket: the "Multi-Host TPU" command."""

from contextlib import closing
from pathlib import Path
from typing import Any

import commands
import pytest
import slices
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for
from fleets import done
from runs import Activations, activations, require_close, small_flags

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


EXACT = {"compute_dtype": "float32", "window_samples": 8, "shard_size_gb": 0.001}


def printed(model: Path, output: Path) -> list[str]:
    """The flags as printed, except the coordinator, with our own model and small settings."""
    claims = {"sharded_dataset_dir": DATASET, "gcs_bucket": BUCKET, "lease_seconds": 10}
    flags = small_flags(None, model, **EXACT, **claims, output_dir=output, mesh="data=2,fsdp=2")
    return ["--use_sharded_dataset", *flags]


def read_done() -> list[dict[str, Any]]:
    with closing(open_store(DATASET)) as store:
        return done(store)


def extracted(output: Path) -> Activations:
    """Return the samples that the done-manifests name; fails if one is there twice."""
    found: Activations = {}
    for manifest in read_done():
        assert len(manifest["hosts"]) == HOSTS
        for host, outcome in enumerate(manifest["hosts"]):
            below = f"tpu_0_host_{host}/{manifest['shard']}/{manifest['attempt']}"
            assert outcome["output"] == f"gs://{BUCKET}/activations/{below}"
            more = activations(output / below)
            assert found.keys().isdisjoint(more)
            found |= more
    return found


@pytest.mark.slow
def test_a_slice_extracts_a_sharded_dataset_and_goes_on_after_a_loss(
    tiny_model: Path, tasks: Path, tmp_path: Path, gcs: FakeGcs
) -> None:
    assert main(["shards", "create", "--dataset_path", str(tasks), "--output", DATASET, "--num_shards", "4"]) == 0
    output = tmp_path / "out"
    with slices.running(printed(tiny_model, output), tmp_path, HOSTS) as processes:
        wait_for(lambda: bool(read_done()) or any(process.poll() is not None for process in processes), 200)
        slices.kill(processes[1])
        _, errors = processes[0].communicate(timeout=60)
    assert "host 1 was lost" in errors
    assert 0 < len(read_done()) < 4
    summaries = slices.run(printed(tiny_model, output), tmp_path, HOSTS)
    assert "worker 0" in summaries[0]
    assert len(read_done()) == 4
    flags = small_flags(tasks, tiny_model, **EXACT, output_dir=tmp_path / "alone")
    alone = commands.run(["-m", "layertap", "extract", *flags], tmp_path)
    assert alone.returncode == 0, alone.stderr
    require_close(extracted(output), activations(tmp_path / "alone"))


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
