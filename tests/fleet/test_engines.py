"""Real worker processes on one dataset, on this machine and on Ray: killed, stopped, interrupted.
Every shard is committed exactly once.
"""

import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
from claiming import claim
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for
from fleets import (
    assert_same,
    count_committed,
    count_done,
    cut,
    done,
    engine,
    flags_of,
    process_of,
    union,
    whole,
    worker_of,
)
from runs import changed

from layertap.config.extract import ExtractConfig
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import UsageError, WorkersFailedError
from layertap.fleet.claims import has_run_out, read_claim, shard_of, take
from layertap.fleet.engines import base, local
from layertap.fleet.engines.ray import _WorkerTask, run_ray
from layertap.fleet.worker import work
from layertap.objects import open_store
from layertap.process.ending import INTERRUPTED

KILLS = 8

# However few cores this machine has, and however busy it is.
PLACES = ("--resources_per_worker", '{"CPU": 0.25}')


@pytest.fixture
def small(config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    return changed(config, compute_dtype="float32", predictions_per_task=1, output_dir=str(tmp_path / "many"))


@pytest.fixture
def many(small: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """Enough tasks to keep the workers busy until something happens."""
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(24, seed=4))
    return changed(small, dataset_path=str(tmp_path / "tasks.jsonl"))


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def _own_variables() -> Iterator[None]:
    """Ray reads settings from the environment when it is imported, and adds some."""
    before = set(os.environ)
    yield
    for name in os.environ.keys() - before:
        del os.environ[name]


def assert_as_one_worker(config: ExtractConfig, place: str, count: int, tmp_path: Path) -> None:
    """Require that each shard is done once, with the bytes of a single worker, and that all equal
    one run.
    """
    store = open_store(place)
    manifests = done(store)
    assert [manifest["shard"] for manifest in manifests] == [f"shard_{number:05d}" for number in range(count)]
    alone = str(tmp_path / "alone")
    cut(config.dataset_path, alone, count)
    work(worker_of(changed(config, output_dir=str(tmp_path / "one")), alone))
    for ours, single in zip(manifests, done(open_store(alone)), strict=True):
        assert ours["files"] == single["files"]
    assert_same(union(store, layer=3), whole(config, tmp_path), 1e-5)
    store.close()


# -- processes of this machine ---------------------------------------------------------------------


@pytest.mark.whole
def test_workers_share_a_dataset(small: ExtractConfig, dataset: str, log: Path, tmp_path: Path) -> None:
    cut(small.dataset_path, dataset, 4)
    with engine(worker_of(small, dataset, 5), log, "local", 2) as process:
        assert process.wait(240) == 0, log.read_text()
    assert f"4 of 4 dataset shards of {dataset} are done" in log.read_text()
    for worker in (5, 6):
        assert f"[{worker}] worker {worker}: committed" in log.read_text()
    assert_same(union(open_store(dataset), layer=3), whole(small, tmp_path), 1e-5)


@pytest.mark.whole
def test_wrong_input_stops_all_workers(small: ExtractConfig, dataset: str, log: Path, tmp_path: Path) -> None:
    cut(small.dataset_path, dataset, 4)
    wrong = worker_of(changed(small, model_path=str(tmp_path / "nothing")), dataset)
    with engine(wrong, log, "local", 2) as process:
        assert process.wait(120) == 2
    assert "stopped with the error above" in log.read_text()


@pytest.mark.whole
@pytest.mark.timeout(900)  # three processes load a model on what may be a busy machine
@pytest.mark.parametrize("how", ["interrupt", pytest.param("kill", marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(many: ExtractConfig, dataset: str, log: Path, how: str) -> None:
    cut(many.dataset_path, dataset, 24)
    with engine(worker_of(many, dataset, lease_seconds=10.0), log, "local", 2) as process:
        wait_for(lambda: count_done(open_store(dataset)) >= 1, 120)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        notice = signal.SIGINT if how == "interrupt" else signal.SIGKILL
        process.send_signal(notice)
        assert process.wait(90) == (INTERRUPTED if how == "interrupt" else -notice)
        wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children), 90)
    left = 24 - count_committed(open_store(dataset))  # a killed worker may have left a commit to be settled
    assert work(worker_of(many, dataset, lease_seconds=10.0)).shards == left
    assert count_done(open_store(dataset)) == 24


@pytest.mark.whole
def test_a_worker_whose_parent_is_gone_is_interrupted(small: ExtractConfig, dataset: str) -> None:
    """This holds although its own messages can no longer be written."""
    cut(small.dataset_path, dataset, 1)
    assert take(open_store(dataset), "shard_00000", claim(9)) is not None
    started = subprocess.Popen(
        [sys.executable, "-m", "layertap.fleet.engines.local"],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        started.stdin.write(pickle.dumps(worker_of(small, dataset)))
        started.stdin.flush()
        while b"waiting for 1" not in (line := started.stdout.readline()):
            assert line
        started.stdout.close()
        started.stdin.close()
        assert started.wait(60) == INTERRUPTED
    finally:
        started.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_workers_one_killed_every_few_shards(
    many: ExtractConfig, place: str, log: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = 24
    if place.startswith("gs:"):
        gcs: FakeGcs = request.getfixturevalue("gcs")
        gcs.faults.storm = 0.03  # lost replies, resets, refusals
    store = open_store(place)
    cut(many.dataset_path, place, count)
    chance, killed = random.Random(0), 0
    with engine(worker_of(many, place, lease_seconds=20.0), log, "local", 4) as process:
        while process.poll() is None:
            time.sleep(0.1)
            busy = list(store.list("claims/"))
            if killed < KILLS and count_done(store) >= 2 * killed + 1 and busy and process.poll() is None:
                holder = read_claim(store, shard_of(chance.choice(busy).name))
                victim = None if holder is None else process_of(tmp_path / "many" / f"tpu_{holder[1].worker}")
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        assert process.returncode == 0, log.read_text()[-3000:]
    assert killed >= KILLS // 2
    # A worker that is killed between done-manifest and deletion leaves a claim that says the same.
    left = [read_claim(store, shard_of(info.name)) for info in store.list("claims/")]
    assert all(found is not None and found[1].state == "committed" for found in left)
    store.close()
    assert_as_one_worker(many, place, count, tmp_path)


@pytest.mark.slow
def test_a_worker_stopped_past_its_lease_commits_nothing_when_it_wakes(
    many: ExtractConfig, place: str, tmp_path: Path
) -> None:
    """This tests the whole worker, not only the lease. It is stopped while it extracts, loses the
    shard, and wakes.
    """
    store = open_store(place)
    cut(many.dataset_path, place, 1)
    slow = changed(worker_of(many, place, 0, lease_seconds=4.0), shard_size_gb=0.0001)
    process = commands.start([commands.ROOT / "extract_activations.py", *flags_of(slow)], tmp_path)
    wait_for(lambda: any((tmp_path / "many").rglob("metadata.json")) or process.poll() is not None, 120)
    process.send_signal(signal.SIGSTOP)
    assert read_claim(store, "shard_00000")[1].worker == 0
    wait_for(lambda: has_run_out(store, *read_claim(store, "shard_00000")))
    assert work(changed(worker_of(slow, place, 1, lease_seconds=4.0), output_dir=str(tmp_path / "thief"))).shards == 1
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "another worker has taken it over" in errors
    assert "committed 0 dataset shards" in output
    (manifest,) = done(store)
    assert (manifest["worker"], manifest["lost_by"][0].split("@")[0]) == (1, "0")
    store.close()


def test_a_worker_goes_on_although_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `2>&1 | head -1`, it prints more than a pipe holds."""
    reading, writing = os.pipe()
    os.close(reading)
    talking = subprocess.Popen([sys.executable, "-c", "print('words\\n' * 100_000)"], stdout=subprocess.PIPE)
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", nowhere)
        local._pass_on(0, talking.stdout)
    monkeypatch.undo()
    assert talking.wait(60) == 0


def test_workers_that_keep_dying_are_given_up(
    small: ExtractConfig, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(small.dataset_path, dataset, 2)
    monkeypatch.setattr(base, "_MOST_DEATHS", 2)
    monkeypatch.setattr(base, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    with pytest.raises(WorkersFailedError, match="workers died 2 times"):
        local.run_local(worker_of(small, dataset, engine="local", num_workers=1))


# -- Ray -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_worker_killed_in_mid_shard_is_started_again_and_nothing_is_lost(
    many: ExtractConfig, dataset: str, log: Path, tmp_path: Path
) -> None:
    slow = changed(many, shard_size_gb=0.0001)  # many small files, so that a shard takes a while
    cut(slow.dataset_path, dataset, 6)
    with engine(worker_of(slow, dataset, 5, lease_seconds=20.0), log, "ray", 2, *PLACES) as process:
        folder = tmp_path / "many" / "tpu_5"
        wait_for(lambda: any(folder.rglob("metadata.json")) or process.poll() is not None, 300)
        victim = process_of(folder)
        assert victim is not None, log.read_text()
        os.kill(victim, signal.SIGKILL)
        assert process.wait(400) == 0, log.read_text()
    assert "worker 5 died; restarting it in 0.5 s" in log.read_text()
    assert f"6 of 6 dataset shards of {dataset} are done" in log.read_text()
    assert {manifest["worker"] for manifest in done(open_store(dataset))} <= {5, 6}
    assert not list(open_store(dataset).list("claims/"))
    assert_as_one_worker(slow, dataset, 6, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interruption_gives_the_shards_of_ray_workers_back(
    many: ExtractConfig, dataset: str, log: Path, tmp_path: Path
) -> None:
    cut(many.dataset_path, dataset, 12)
    store = open_store(dataset)
    with engine(worker_of(many, dataset), log, "ray", 2, *PLACES) as process:
        wait_for(lambda: count_done(store) >= 1 or process.poll() is not None, 300)
        workers = [process_of(tmp_path / "many" / f"tpu_{number}") for number in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == INTERRUPTED, log.read_text()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers if pid is not None), 60)
    assert not list(store.list("claims/")), log.read_text()


@pytest.mark.usefixtures("_own_variables")
def test_ray_that_is_not_installed(small: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r" -m pip install .*\[ray\]"):
        run_ray(worker_of(small, "x", engine="ray", num_workers=1))


@pytest.mark.usefixtures("_own_variables")
@pytest.mark.parametrize("listens", [False, True])
def test_an_address_is_tried_before_ray_waits_for_it(
    small: ExtractConfig, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    asked = []

    def init(*, address: str, **_: object) -> None:
        asked.append(address)
        raise ConnectionError("no Ray")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        with pytest.raises(UsageError, match=f"--ray_address {address}: {'no Ray' if listens else 'does not answer'}"):
            run_ray(worker_of(small, "x", engine="ray", num_workers=1, ray_address=address))
    assert asked == ([address] if listens else [])


@pytest.mark.whole
@pytest.mark.usefixtures("_own_variables")
def test_resources_that_ray_does_not_take_are_refused(small: ExtractConfig) -> None:
    ray = pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"--resources_per_worker: Ray refuses .*'TPU': 3.* supported"):
        _WorkerTask(ray, {"CPU": 1, "TPU": 3}, small)
