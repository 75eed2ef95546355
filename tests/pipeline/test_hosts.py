"""Several hosts: 4 processes of 2 CPU devices each, which communicate over loopback."""

import json
import re
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import commands
import jax
import numpy as np
import pytest
import shards
import slices
from clouds import BUCKET
from fakes.gcs import FakeGcs
from runs import Activations, activations, changed, require_close, small_flags

from layertap.config.extract import ExtractConfig, HostsConfig
from layertap.config.upload import UploadConfig
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import HostsStoppedError, UsageError
from layertap.pipeline.hosts import Hosts, join
from layertap.pipeline.progress import Watch
from layertap.pipeline.run import extract_prepared
from layertap.pipeline.session import Session
from layertap.pipeline.setup import prepare

HOSTS = 4


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 tasks, so that the last windows of the hosts have different sizes."""
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_tasks(path, make_tasks(27, seed=1))
    return path


def flags(model: Path, tasks: Path, output: Path) -> list[str]:
    more = {"output_dir": output, "checkpoint_dir": output / "checkpoints", "shard_size_gb": 0.001}
    return small_flags(tasks, model, window_samples=8, compute_dtype="float32", **more)


def union(output: Path) -> Activations:
    """Return the activations of all hosts; fails if two hosts have the same sample."""
    found: Activations = {}
    for folder in sorted(output.glob("tpu_0_host_*")):
        part = activations(folder)
        assert not found.keys() & part.keys()
        found |= part
    return found


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """The activations of one process, which computes the prefix with each prompt."""
    output = tmp_path_factory.mktemp("alone") / "out"
    done = commands.run(
        ["-m", "layertap", "extract", *flags(tiny_model, tasks, output), "--no_share_prefix"], output.parent
    )
    assert done.returncode == 0, done.stderr
    return activations(output)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4"])
def test_the_union_is_what_one_process_gives(
    tiny_model: Path, tasks: Path, alone: Activations, tmp_path: Path, mesh: str
) -> None:
    summaries = slices.run([*flags(tiny_model, tasks, tmp_path / "out"), "--mesh", mesh], tmp_path, HOSTS)
    assert all("a prefix that was computed once" in summary for summary in summaries)
    require_close(union(tmp_path / "out"), alone)
    assert {path.name for path in (tmp_path / "out").glob("tpu_*")} == {f"tpu_0_host_{host}" for host in range(HOSTS)}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [2, 0], ids=["a host", "the coordinator"])
def test_a_lost_host_is_named_and_the_restart_goes_on(
    tiny_model: Path, tasks: Path, alone: Activations, tmp_path: Path, victim: int
) -> None:
    output = tmp_path / "out"
    arguments = [*flags(tiny_model, tasks, output), "--mesh", "data=4,fsdp=2"]
    with slices.running(arguments, tmp_path, HOSTS) as processes:
        deadline = time.monotonic() + 240
        while not all((output / f"tpu_0_host_{host}" / "metadata.json").exists() for host in range(HOSTS)):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.02)
        slices.kill(processes[victim])
        survivors = [process for host, process in enumerate(processes) if host != victim]
        errors = [process.communicate(timeout=60)[1] for process in survivors]
    for process, error in zip(survivors, errors, strict=True):
        assert process.returncode == 1
        assert f"host {victim}" in error.splitlines()[-1]
        assert "run the same command on every host again" in error.splitlines()[-1]
        assert "@     0x" not in error
    committed = [len(shards.manifest(path.parent)["shards"]) for path in sorted(output.glob("*/metadata.json"))]
    assert all(count > 0 for count in committed)
    summaries = slices.run(arguments, tmp_path, HOSTS)
    assert any("resumed after" in summary for summary in summaries)
    require_close(union(output), alone)


@pytest.mark.slow
def test_wrong_input_of_one_host_stops_all_and_is_named(tiny_model: Path, tasks: Path, tmp_path: Path) -> None:
    lines = tasks.read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:5], '{"train": 7}', *lines[6:]]) + "\n")
    arguments = [*flags(tiny_model, bad, tmp_path / "out"), "--mesh", "data=8"]
    with slices.running(arguments, tmp_path, HOSTS) as processes:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [2] * HOSTS
    assert all("host 1" in error.splitlines()[-1] for error in errors)
    assert "line 6" in errors[1].splitlines()[-1]


@pytest.mark.slow
def test_hosts_that_were_started_with_other_settings_stop_at_once(
    tiny_model: Path, tasks: Path, tmp_path: Path
) -> None:
    port = slices.free_port()
    meeting = ["--multihost", "--num_hosts", "2", "--coordinator_address", f"127.0.0.1:{port}"]
    command = ["-m", "layertap", "extract", *flags(tiny_model, tasks, tmp_path / "out"), *meeting]
    own = [["--host_id", "0"], ["--host_id", "1", "--layers_to_extract", "0"]]
    processes = [commands.start([*command, *flag], tmp_path) for flag in own]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            slices.kill(process)
    assert [process.returncode for process in processes] == [2, 2]
    assert all("layers: [0, 1, 2, 3] there, [0] now" in error for error in errors)
    assert not list((tmp_path / "out").rglob("metadata.json"))


@pytest.mark.parametrize("name", ["mesh", "row_length"])
def test_settings_of_hosts_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"mesh": {"data": 2, "fsdp": 2}, "row_length": 1024}
    monkeypatch.setattr(Hosts, "exchange", lambda _, said: [said, said, json.dumps(others | {name: "other"})])
    with pytest.raises(HostsStoppedError, match=rf"host 2 .*\n  {name}: .* there, other now"):
        Hosts(1, 3).require_same(others)


def test_texts_of_all_lengths_are_exchanged_by_few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: set[int] = set()

    def allgather(numbers: np.ndarray) -> np.ndarray:
        gathered.add(len(numbers))
        return np.stack([numbers, numbers])

    monkeypatch.setattr("layertap.pipeline.hosts.multihost_utils.process_allgather", allgather)
    for length in range(300):
        assert Hosts(1, 2).exchange("x" * length) == ["x" * length] * 2
    assert gathered == {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}


def test_the_summary_of_a_host_names_its_own_folder_and_url(
    config: ExtractConfig, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hosts are this process, and say the same."""
    monkeypatch.setattr(Hosts, "gather", lambda _, numbers: np.array([numbers, numbers]))
    uploading = changed(config, max_tasks=2, upload=UploadConfig(gcs_bucket=BUCKET))
    setup = prepare(uploading, Hosts(index=1, count=2))
    for start in ("first", "complete already"):
        with closing(Session()) as session:
            text = extract_prepared(setup, session, Watch()).describe()
        assert ("already complete" in text) == (start != "first")
        found = re.search(r"shards? in (\S+)", text)
        assert (Path(found[1]) / "metadata.json").is_file(), text
        found = re.search(rf"verified in gs://{BUCKET}/(\S+)", text)
        assert f"{found[1]}/metadata.json" in gcs.contents(BUCKET, ""), text


@pytest.mark.slow
@pytest.mark.parametrize("told_by", ["flags", "the cluster"])
def test_one_host_that_meets_nobody_is_a_run_of_its_own(
    tiny_model: Path, tasks: Path, tmp_path: Path, told_by: str
) -> None:
    """Slurm gives in its environment what Cloud TPU gives in its metadata."""
    port = slices.free_port()
    numbers = {"JOB_ID": 1, "STEP_NUM_NODES": 1, "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "STEP_NODELIST": "127.0.0.1"}
    slurm = {f"SLURM_{name}": str(value) for name, value in numbers.items()} | {"JAX_COORDINATOR_PORT": str(port)}
    meeting = ["--num_hosts", "1", "--host_id", "0", "--coordinator_address", f"127.0.0.1:{port}"]
    command = ["-m", "layertap", "extract", *flags(tiny_model, tasks, tmp_path / "out"), "--max_tasks", "2"]
    by_flags = told_by == "flags"
    done = commands.run([*command, "--multihost", *(meeting if by_flags else [])], tmp_path, {} if by_flags else slurm)
    assert done.returncode == 0, done.stderr
    assert len(shards.samples(tmp_path / "out", 0)) >= 4


def test_hosts_that_nobody_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is like a machine that belongs to no cluster that JAX knows."""
    monkeypatch.setattr(jax.distributed, "initialize", Mock(side_effect=ValueError("coordinator_address ...")))
    with pytest.raises(UsageError, match="give --num_hosts, --host_id and --coordinator_address"):
        join(HostsConfig(multihost=True))


ALL = {"multihost": True, "num_hosts": 4, "host_id": 0, "coordinator_address": "a:1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hosts": 4}, "--num_hosts: works only with --multihost"),
        ({"multihost": True, "num_hosts": 4, "host_id": 0}, "give all of"),
        (ALL | {"host_id": 4}, "--host_id 4 is not one of 4 hosts"),
        (ALL | {"coordinator_address": "10.0.0.1"}, "--coordinator_address 10.0.0.1: give HOST:PORT"),
        (ALL | {"coordinator_address": "10.0.0.1:84760"}, "--coordinator_address 10.0.0.1:84760: give HOST:PORT"),
        (ALL | {"coordinator_address": "http://10.0.0.1:8476"}, "give HOST:PORT"),
    ],
)
def test_flags_that_name_no_host_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HostsConfig(**settings)
