"""Real processes that are stopped: in the end their output is that of one which ran through."""

import json
import random
import signal
import time
from pathlib import Path

import commands
import pytest
import shards

from layertap.demo.tasks import make_tasks, write_tasks

KILLS = 10


def arguments(model: Path, tasks: Path, name: str = "pickle") -> list[str | Path]:
    settings = {
        "dataset_path": tasks,
        "model_path": model,
        "predictions_per_task": 2,
        "row_length": 1024,
        "batch_size": 2,
        "window_samples": 16,
        "shard_size_gb": 0.002,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [commands.ROOT / "extract_activations.py", *flags, "--format", name, "--activation_type", "residual", "mlp"]


def shard_count(folder: Path) -> int:
    path = folder / "activations" / "metadata.json"
    return len(json.loads(path.read_text())["shards"]) if path.exists() else 0


def wait_for_shard(process, folder: Path, count: int) -> None:
    while process.poll() is None and shard_count(folder) < count:
        time.sleep(0.01)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(24, seed=1))
    return tmp_path / "tasks.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pickle", "safetensors"])
def test_killed_at_ten_moments_and_resumed_gives_the_same_bytes(
    tiny_model: Path, tasks: Path, tmp_path: Path, name: str
) -> None:
    command = arguments(tiny_model, tasks, name)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = commands.run(command, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    total = shard_count(tmp_path / "whole")
    assert total >= 2 * KILLS

    chance = random.Random(0)
    moments = []
    for kill in range(KILLS):
        process = commands.start(command, tmp_path / "killed")
        if kill:  # the first is killed while it starts
            wait_for_shard(process, tmp_path / "killed", shard_count(tmp_path / "killed") + total // (KILLS + 2))
        time.sleep(chance.random() * 0.15)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        moments.append(shard_count(tmp_path / "killed"))
    assert len(set(moments)) >= KILLS // 2  # most kills fell at a stage of their own
    print("killed with so many shards committed:", moments, "of", total)
    last = commands.run(command, tmp_path / "killed")
    assert last.returncode == 0, last.stderr
    assert "resumed after" in last.stdout
    assert shards.contents(tmp_path / "killed" / "activations") == shards.contents(tmp_path / "whole" / "activations")


@pytest.mark.parametrize("notice", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_says_so_and_goes_on(tiny_model: Path, tasks: Path, tmp_path: Path, notice: int) -> None:
    command = arguments(tiny_model, tasks)
    process = commands.start(command, tmp_path)
    wait_for_shard(process, tmp_path, 1)
    process.send_signal(notice)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    committed = shard_count(tmp_path)
    again = commands.run(command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"going on after {committed} shards" in again.stderr
    verified = commands.run(["-m", "layertap", "verify", "activations"], tmp_path)
    assert verified.returncode == 0, verified.stdout
