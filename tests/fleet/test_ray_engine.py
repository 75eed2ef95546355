"""Workers on a Ray cluster of this machine: one killed in mid-shard, all interrupted, none with a place."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gcs_faults import wait_for
from fleets import assert_same, count_done, cut, done, engine, process_of, union, whole, worker_of
from runs import changed

from layertap.config.extract import ExtractConfig
from layertap.config.sharded import ShardedConfig
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import UsageError
from layertap.fleet.engines.ray import _WorkerTask, run_ray
from layertap.fleet.worker import work
from layertap.objects import open_store

# However few cores this machine has, and however busy it is.
PLACES = ("--resources_per_worker", '{"CPU": 0.25}')


@pytest.fixture(autouse=True)
def _variables_of_ray() -> Iterator[None]:
    """Ray reads settings from the environment when it is imported, and adds some: a command's process is its own."""
    before = set(os.environ)
    yield
    for name in os.environ.keys() - before:
        del os.environ[name]


@pytest.fixture
def small(config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(12, seed=4))
    return changed(
        config,
        dataset_path=str(tmp_path / "tasks.jsonl"),
        compute_dtype="float32",
        predictions_per_task=1,
        output_dir=str(tmp_path / "many"),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_in_mid_shard_is_started_again_and_nothing_is_lost(
    small: ExtractConfig, tmp_path: Path
) -> None:
    place, log = str(tmp_path / "dataset"), tmp_path / "log"
    cut(small.dataset_path, place, 6)
    store = open_store(place)
    # Many small files, so that a shard takes a while.
    config = changed(worker_of(small, place, 5, lease_seconds=20.0), shard_size_gb=0.0001)
    with engine(config, log, "ray", 2, *PLACES) as process:
        folder = tmp_path / "many" / "tpu_5"
        wait_for(lambda: any(folder.rglob("metadata.json")) or process.poll() is not None, 300)
        victim = process_of(folder)
        assert victim is not None, log.read_text()
        os.kill(victim, signal.SIGKILL)
        assert process.wait(400) == 0, log.read_text()
    text = log.read_text()
    assert "worker 5 died; it is started again in 0.5 s" in text
    assert f"6 of 6 dataset shards of {place} are done" in text
    manifests = done(store)
    assert [manifest["shard"] for manifest in manifests] == [f"shard_{number:05d}" for number in range(6)]
    assert {manifest["worker"] for manifest in manifests} <= {5, 6}
    assert not list(store.list("claims/"))
    alone = str(tmp_path / "alone")
    cut(small.dataset_path, alone, 6)
    work(changed(worker_of(config, alone), output_dir=str(tmp_path / "one")))
    for ours, single in zip(manifests, done(open_store(alone)), strict=True):  # the very same bytes
        assert ours["files"] == single["files"]
    assert_same(union(store, layer=3), whole(small, tmp_path), 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interruption_gives_the_shards_back(small: ExtractConfig, tmp_path: Path) -> None:
    place, log = str(tmp_path / "dataset"), tmp_path / "log"
    cut(small.dataset_path, place, 12)
    store = open_store(place)
    with engine(worker_of(small, place), log, "ray", 2, *PLACES) as process:
        wait_for(lambda: count_done(store) >= 1 or process.poll() is not None, 300)
        workers = [process_of(tmp_path / "many" / f"tpu_{number}") for number in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, log.read_text()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers if pid is not None), 60)
    assert not list(store.list("claims/")), log.read_text()


@pytest.mark.slow
def test_a_machine_that_has_not_what_a_worker_needs(small: ExtractConfig, tmp_path: Path) -> None:
    place, log = str(tmp_path / "dataset"), tmp_path / "log"
    cut(small.dataset_path, place, 2)
    with engine(worker_of(small, place), log, "ray", 1, "--resources_per_worker", '{"TPU": 4}') as process:
        assert process.wait(120) == 2
    assert "this machine has not" in log.read_text()
    assert "node:127.0.0.1" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_cluster_that_does_not_answer(small: ExtractConfig, tmp_path: Path) -> None:
    place, log = str(tmp_path / "dataset"), tmp_path / "log"
    cut(small.dataset_path, place, 2)
    with engine(worker_of(small, place), log, "ray", 1, "--ray_address", "127.0.0.1:1") as process:
        assert process.wait(240) == 2, log.read_text()
    assert "error: --ray_address 127.0.0.1:1" in log.read_text()


def test_ray_that_is_not_installed(small: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r" -m pip install .*\[ray\]"):
        run_ray(worker_of(small, "x", engine="ray", num_workers=1))


def test_resources_that_ray_does_not_take_are_refused(small: ExtractConfig) -> None:
    ray = pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"--resources_per_worker: Ray does not take .*'TPU': 3.* supported"):
        _WorkerTask(ray, {"CPU": 1, "TPU": 3}, small)


def test_what_a_worker_needs() -> None:
    def needs(text: str | None) -> dict[str, float]:
        ray = {"sharded_dataset_dir": "x", "engine": "ray", "num_workers": 1}
        return ShardedConfig(**ray, resources_per_worker=text).worker_resources

    assert needs(None) == {"CPU": 1}
    assert needs('{"TPU": 4}') == {"CPU": 1, "TPU": 4}
    assert needs('{"CPU": 0.5, "GPU": 1}') == {"CPU": 0.5, "GPU": 1}
