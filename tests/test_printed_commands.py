"""The commands of the first description, word for word in a shell; Hub, bucket and Cloud TPU are on
loopback.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import shards
import slices
from fakes.cloud_tpu import PROJECT, FakeCloudTpu
from fakes.gcs import FakeGcs
from fakes.hub import FakeHub

from layertap.cli import main
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

SINGLE = """\
python extract_activations.py \\
    --dataset_path data/stream_0.jsonl \\
    --model_path Qwen/Qwen2.5-0.5B \\
    --batch_size 4 \\
    --layers_to_extract 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 \\
    --activation_type residual \\
    --gcs_bucket your-bucket \\
    --upload_to_gcs
"""
PARALLEL = """\
export TPU_WORKER_ID={worker}
python extract_activations.py \\
    --dataset_path data/stream_{worker}.jsonl \\
    --gcs_bucket your-bucket \\
    --upload_to_gcs
"""
MULTIHOST = """\
python extract_activations.py \\
    --use_sharded_dataset \\
    --sharded_dataset_dir gs://bucket/sharded_dataset \\
    --multihost --num_hosts 4 --host_id {host} \\
    --coordinator_address "127.0.0.1:{port}" \\
    --gcs_bucket your-bucket
"""
TPUS = """\
# Create TPUs across zones
./scripts/manage_tpus.sh create --zones us-central1-a,us-central1-b --workers_per_zone 4

# Check status
./scripts/manage_tpus.sh status --zones us-central1-a,us-central1-b

# Recreate preempted TPUs
./scripts/manage_tpus.sh recreate-preempted --zones us-central1-a --workers_per_zone 4
"""
# Not printed: what 4 hosts compute on a shared processor has to be little.
LITTLE = " --predictions_per_task 1 --layers_to_extract 0 --batch_size 1 --row_length 2048"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A Hub that has a small model of 24 layers under the printed name."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, "tiny", layers=24)
    with FakeHub() as hub:
        hub.publish("Qwen/Qwen2.5-0.5B", folder)
        yield hub


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    with FakeGcs("your-bucket", "bucket") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield server


@pytest.fixture
def project(hub: FakeHub, bucket: FakeGcs, tmp_path: Path) -> Path:
    """A folder with the script and two streams, and `python` on the path."""
    (tmp_path / "extract_activations.py").symlink_to(commands.ROOT / "extract_activations.py")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / "data").mkdir()
    for stream in (0, 1):
        write_tasks(tmp_path / "data" / f"stream_{stream}.jsonl", make_tasks(1, seed=stream))
    return tmp_path


def shell(command: str, project: Path, hub: FakeHub) -> "subprocess.Popen[str]":
    environment = hub.environment(project / "hub")
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-euc", command],
        cwd=project,
        env={**environment, "PATH": path, "PYTHONPATH": str(commands.ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_well(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return output


def names(bucket: FakeGcs) -> set[str]:
    """What a run that has ended leaves there."""
    found = set(bucket.contents("your-bucket"))
    assert not any(name.endswith("owner.json") for name in found)
    return found


@pytest.mark.whole
def test_a_single_worker(project: Path, hub: FakeHub, bucket: FakeGcs) -> None:
    assert "tokens/s" in ends_well(shell(SINGLE, project, hub))
    assert {"activations/tpu_0/shard_0001.pkl.gz", "activations/tpu_0/metadata.json"} <= names(bucket)
    assert (project / "checkpoints" / "checkpoint_worker_0.json").exists()
    shard = shards.read(project / "activations" / "shard_0001.pkl.gz")
    assert list(shard) == list(range(24))
    assert {"sample_idx", "activation", "shape", "text_preview"} <= shard[0][0].keys()
    assert main(["verify", "gs://your-bucket/activations/tpu_0"]) == 0


@pytest.mark.slow  # what a process does more than test_a_single_worker is to read TPU_WORKER_ID
def test_parallel_independent_workers(project: Path, hub: FakeHub, bucket: FakeGcs) -> None:
    # Each on its own machine: their folders are their own.
    machines = [project / f"machine_{worker}" for worker in (0, 1)]
    for machine in machines:
        machine.mkdir()
        for name in ("extract_activations.py", "bin", "data"):
            (machine / name).symlink_to(project / name)
    running = [shell(PARALLEL.format(worker=worker), machines[worker], hub) for worker in (0, 1)]
    for process in running:
        ends_well(process)
    for worker in (0, 1):
        assert f"activations/tpu_{worker}/shard_0001.pkl.gz" in names(bucket)
        assert (machines[worker] / "checkpoints" / f"checkpoint_worker_{worker}.json").exists()
        assert main(["verify", f"gs://your-bucket/activations/tpu_{worker}"]) == 0


@pytest.mark.slow
def test_a_slice_of_four_hosts(project: Path, hub: FakeHub, bucket: FakeGcs) -> None:
    tasks = project / "tasks.jsonl"
    write_tasks(tasks, make_tasks(8, seed=3))
    create = ["--dataset_path", str(tasks), "--output", "gs://bucket/sharded_dataset", "--num_shards", "2"]
    assert main(["shards", "create", *create]) == 0
    port = slices.free_port()
    running = [shell(MULTIHOST.format(host=host, port=port).strip() + LITTLE, project, hub) for host in range(4)]
    outputs = [process.communicate(timeout=280) for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    found = [
        name for name in names(bucket) if re.search(r"activations/tpu_0_host_\d/shard_0000\d/\w+/shard_0001", name)
    ]
    assert {name.split("/")[1] for name in found} == {f"tpu_0_host_{host}" for host in range(4)}


@pytest.mark.whole
def test_a_fleet_of_tpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeCloudTpu() as cloud:
        # The endpoint is all that the printed commands lack; it comes with the Python that the
        # script is told to take.
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --api_endpoint {cloud.endpoint}\n')
        python.chmod(0o755)
        monkeypatch.setenv("PYTHON", str(python))
        monkeypatch.setenv("PYTHONPATH", str(commands.ROOT / "src"))
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
        create, status, recreate = TPUS.split("\n\n")
        outputs = []
        for command in (create, status, recreate):
            done = subprocess.run(["bash", "-euc", command], cwd=commands.ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            outputs.append([line.split()[:2] for line in done.stdout.splitlines()[1:]])
            if command == status:
                cloud.set_state("tpu-us-central1-a-2", "PREEMPTED")
        both = [["us-central1-a", "4"], ["us-central1-b", "4"]]
        assert outputs == [both, both, both[:1]]
        assert cloud.workers() == {worker: f"tpu-us-central1-{zone}-{worker}" for worker, zone in enumerate("aaaabbbb")}
        assert set(cloud.states().values()) == {"READY"}
