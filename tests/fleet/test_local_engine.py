"""Real worker processes on one dataset: killed, stopped, interrupted; every shard is committed once, and exactly."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

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
from layertap.errors import WorkersFailedError
from layertap.fleet.claims import has_run_out, read_claim, take
from layertap.fleet.engines import base, local
from layertap.fleet.worker import work
from layertap.objects import open_store
from layertap.process.ending import INTERRUPTED

KILLS = 8
SCRIPT = commands.ROOT / "extract_activations.py"


@pytest.fixture
def small(config: ExtractConfig) -> ExtractConfig:
    return changed(config, compute_dtype="float32", predictions_per_task=1)


@pytest.fixture
def many(small: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """So many tasks that workers are in the midst of them when something happens."""
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(24, seed=4))
    return changed(small, dataset_path=str(tmp_path / "tasks.jsonl"))


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_workers_share_a_dataset(small: ExtractConfig, tmp_path: Path) -> None:
    place = str(tmp_path / "dataset")
    cut(small.dataset_path, place, 4)
    with engine(worker_of(small, place, 5), tmp_path / "log", "local", 2) as process:
        assert process.wait(240) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert f"4 of 4 dataset shards of {place} are done" in text
    assert "[5] worker 5: committed" in text
    assert "[6] worker 6: committed" in text
    assert_same(union(open_store(place), layer=3), whole(small, tmp_path), 1e-5)


def test_wrong_input_stops_all_workers(small: ExtractConfig, tmp_path: Path) -> None:
    place = str(tmp_path / "dataset")
    cut(small.dataset_path, place, 4)
    wrong = worker_of(changed(small, model_path=str(tmp_path / "nothing")), place)
    with engine(wrong, tmp_path / "log", "local", 2) as process:
        assert process.wait(120) == 2
    assert "cannot go on, as it said above" in (tmp_path / "log").read_text()


@pytest.mark.timeout(900)  # three processes load a model on what may be a busy machine
@pytest.mark.parametrize("how", ["interrupt", pytest.param("kill", marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(many: ExtractConfig, tmp_path: Path, how: str) -> None:
    place = str(tmp_path / "dataset")
    cut(many.dataset_path, place, 24)
    with engine(worker_of(many, place, lease_seconds=10.0), tmp_path / "log", "local", 2) as process:
        wait_for(lambda: count_done(open_store(place)) >= 1, 120)
        workers = children(process.pid)
        assert len(workers) == 2
        notice = signal.SIGINT if how == "interrupt" else signal.SIGKILL
        process.send_signal(notice)
        assert process.wait(90) == (130 if how == "interrupt" else -notice)
        wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), 90)
    left = 24 - count_committed(open_store(place))  # a killed worker may have left a commit to be settled
    assert work(worker_of(many, place, lease_seconds=10.0)).shards == left
    assert count_done(open_store(place)) == 24


def test_a_worker_whose_parent_is_gone_is_interrupted(small: ExtractConfig, tmp_path: Path) -> None:
    """Although its own words have nowhere to go any more."""
    place = str(tmp_path / "dataset")
    cut(small.dataset_path, place, 1)
    assert take(open_store(place), "shard_00000", claim(9)) is not None
    started = subprocess.Popen(
        [sys.executable, "-m", "layertap.fleet.engines.local"],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        started.stdin.write(pickle.dumps(worker_of(small, place)))
        started.stdin.flush()
        while b"waiting for the 1" not in (line := started.stdout.readline()):
            assert line
        started.stdout.close()
        started.stdin.close()
        assert started.wait(60) == INTERRUPTED
    finally:
        started.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_workers_one_killed_every_few_shards(many: ExtractConfig, place: str, tmp_path: Path, request) -> None:
    count = 24
    if place.startswith("gs:"):
        gcs: FakeGcs = request.getfixturevalue("gcs")
        gcs.faults.storm = 0.03  # lost replies, resets, refusals
    store = open_store(place)
    cut(many.dataset_path, place, count)
    chance, killed = random.Random(0), 0
    config = worker_of(changed(many, output_dir=str(tmp_path / "many")), place, lease_seconds=20.0)
    with engine(config, tmp_path / "log", "local", 4) as process:
        while process.poll() is None:
            time.sleep(0.1)
            busy = list(store.list("claims/"))
            if killed < KILLS and count_done(store) >= 2 * killed + 1 and busy and process.poll() is None:
                holder = read_claim(store, chance.choice(busy).name.split("/")[1].removesuffix(".json"))
                victim = None if holder is None else process_of(tmp_path / "many" / f"tpu_{holder[1].worker}")
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert killed >= KILLS // 2
    manifests = done(store)
    assert [manifest["shard"] for manifest in manifests] == [f"shard_{number:05d}" for number in range(count)]
    # Who is killed between done-manifest and deletion leaves a claim, which says the same and stands in nobody's way.
    left = [read_claim(store, info.name.split("/")[1].removesuffix(".json")) for info in store.list("claims/")]
    assert all(found is not None and found[1].state == "committed" for found in left)
    alone = str(tmp_path / "alone")
    cut(many.dataset_path, alone, count)
    work(worker_of(changed(many, output_dir=str(tmp_path / "one")), alone))
    for ours, single in zip(manifests, done(open_store(alone)), strict=True):  # the very same bytes
        assert ours["files"] == single["files"]
    assert_same(union(store, layer=3), whole(many, tmp_path), 1e-5)
    store.close()


@pytest.mark.slow
def test_a_worker_stopped_past_its_lease_commits_nothing_when_it_wakes(
    many: ExtractConfig, place: str, tmp_path: Path
) -> None:
    """The whole worker, not the lease alone: stopped while it extracts, robbed, woken."""
    store = open_store(place)
    cut(many.dataset_path, place, 1)
    slow = changed(worker_of(many, place, 0, lease_seconds=4.0), shard_size_gb=0.0001)
    flags = [SCRIPT, *flags_of(changed(slow, output_dir=str(tmp_path / "stopped")))]
    process = commands.start(flags, tmp_path)
    wait_for(lambda: any((tmp_path / "stopped").rglob("metadata.json")) or process.poll() is not None, 120)
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


def test_a_worker_goes_on_although_nobody_reads_what_it_says(small: ExtractConfig, monkeypatch) -> None:
    """As under `2>&1 | head -1`: more than a pipe holds."""
    reading, writing = os.pipe()
    os.close(reading)
    talking = subprocess.Popen([sys.executable, "-c", "print('words\\n' * 100_000)"], stdout=subprocess.PIPE)
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", nowhere)
        local._pass_on(0, talking.stdout)
    monkeypatch.undo()
    assert talking.wait(60) == 0


def test_workers_that_keep_dying_are_given_up(small: ExtractConfig, tmp_path: Path, monkeypatch) -> None:
    place = str(tmp_path / "dataset")
    cut(small.dataset_path, place, 2)
    monkeypatch.setattr(base, "_MOST_DEATHS", 2)
    monkeypatch.setattr(base, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    config = worker_of(small, place, engine="local", num_workers=1)
    with pytest.raises(WorkersFailedError, match="workers died 2 times"):
        local.run_local(config)
