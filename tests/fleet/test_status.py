"""What `layertap shards status` shows, from claims and done-manifests alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from claiming import claim
from fakes.gcs import FakeGcs
from fleets import cut, worker_of

from layertap.cli import main
from layertap.config.extract import ExtractConfig
from layertap.errors import LayertapError
from layertap.fleet.claims import take
from layertap.fleet.sharded import RUN, read_dataset
from layertap.fleet.status import FleetWatch, describe_fleet
from layertap.fleet.worker import work
from layertap.objects.base import ObjectStore
from layertap.pipeline.metrics import Metrics
from layertap.pipeline.progress import Progress

COUNT = 5


@pytest.fixture
def bucket_set(demo_tasks: Path, bucket: ObjectStore) -> ObjectStore:
    """Five shards of two tasks. Worker 0 has done one, worker 1 is busy with one, worker 2 is
    silent, and worker 3 has failed. One shard is free.
    """
    cut(demo_tasks, bucket.url, COUNT)
    bucket.create(RUN, json.dumps({"prompts": {"predictions_per_task": 2}}).encode())
    leases = [take(bucket, f"shard_{number:05d}", claim(number, lost_by=("9@there",))) for number in range(4)]
    leases[0].commit(
        {"shard": "shard_00000", "worker": 0, "host": "here", "samples": 4, "tokens": 400, "lost_by": ["9@there"]}
    )
    leases[3].fail("too long")
    return bucket


def test_the_fleet_is_told_from_what_lies_there(bucket_set: ObjectStore, gcs: FakeGcs) -> None:
    gcs.state.skew = 125.0
    dataset = read_dataset(bucket_set)
    busy = take(bucket_set, "shard_00004", claim(4, seconds=60))
    busy.beat({"samples": 1, "tokens": 100, "tokens_per_second": 50.0, "waiting_for": "device"})
    status = FleetWatch(bucket_set, dataset).read_status()
    assert status.shards == {"done": (0,), "claimed": (4,), "lost": (1, 2), "failed": (3,), "free": ()}
    samples = [shard.samples(2) for shard in dataset.shards]
    assert status.samples_left == samples[1] + samples[2] + samples[4] - 1
    assert status.tokens_per_second == 50.0
    assert status.seconds_left == pytest.approx(status.samples_left * 100 / 50.0)  # 100 tokens a sample so far
    assert status.takeovers == 4
    assert status.failures == {3: "too long (worker 3@here)"}
    assert not status.ended
    by_worker = {worker.worker: worker for worker in status.workers}
    assert sorted(by_worker) == [0, 1, 2, 4]
    assert (by_worker[0].shard, by_worker[0].shards_done, by_worker[0].tokens_done) == (None, 1, 400)
    assert (by_worker[1].condition, by_worker[1].tokens_per_second) == ("lost", 0.0)
    assert (by_worker[4].shard, by_worker[4].waiting_for) == (4, "device")
    assert by_worker[1].heard_seconds_ago >= 120
    text = describe_fleet(status)
    assert "5 shards: 1 done, 1 claimed, 2 lost, 1 failed, 0 free" in text
    assert "50 tokens/s" in text
    assert "shard 3 failed: too long" in text


def test_time_left_does_not_depend_on_where_a_worker_went_on(demo_tasks: Path, store: ObjectStore) -> None:
    """Both workers are at 4 samples of 400 tokens; one did most of them before its restart."""
    foreseen = []
    cut(demo_tasks, store.url, COUNT)
    store.create(RUN, json.dumps({"prompts": {"predictions_per_task": 2}}).encode())
    for resumed in (0, 360):
        progress = Progress(samples=resumed // 100, tokens=resumed)
        progress.add(4 - resumed // 100, 400 - resumed)
        metrics = Metrics(0)
        metrics.begins(progress)
        lease = take(store, "shard_00000", claim(0))
        lease.beat(metrics.of_this_run() | {"tokens_per_second": 50.0})
        foreseen.append(FleetWatch(store, read_dataset(store)).read_status().seconds_left)
        lease.release()
    assert foreseen[0] > 0
    assert foreseen[1] == foreseen[0]


def test_before_anybody_works_nothing_is_guessed(demo_tasks: Path, store: ObjectStore) -> None:
    cut(demo_tasks, store.url, COUNT)
    status = FleetWatch(store, read_dataset(store)).read_status()
    assert (status.samples_left, status.seconds_left, status.workers) == (None, None, ())
    assert "time left: ?" in describe_fleet(status)


def test_done_manifests_are_read_once(bucket_set: ObjectStore, gcs: FakeGcs) -> None:
    watch = FleetWatch(bucket_set, read_dataset(bucket_set))
    for _ in range(3):
        watch.read_status()
    assert gcs.faults.count("media", "done/shard_00000.json") == 1


@pytest.mark.whole
def test_the_command_watches_until_all_is_done(
    config: ExtractConfig, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(config.dataset_path, place, 2)
    summary = work(worker_of(config, place))
    capsys.readouterr()
    assert main(["shards", "status", place, "--watch"]) == 0
    said = capsys.readouterr().out
    assert "2 shards: 2 done" in said
    assert main(["fleet", "status", place, "--watch", "--poll_seconds", "5"]) == 0
    assert capsys.readouterr().out == said
    assert main(["fleet", "status", place, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["seconds_left"] == 0.0
    assert status["workers"][0]["tokens_done"] == summary.tokens
    lines = (Path(config.output_dir) / "tpu_0" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["dataset_shards"], last["tokens"]) == (2, summary.tokens)
    assert main(["shards", "status", place, "--poll_seconds", "0"]) == 2


def test_the_pause_between_two_looks_is_as_asked(
    bucket_set: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise LayertapError("enough")

    monkeypatch.setattr("layertap.fleet.commands.time", SimpleNamespace(sleep=pause))
    assert main(["fleet", "status", bucket_set.url, "--watch", "--poll_seconds", "0.25"]) == 1
    assert pauses == [0.25, 0.25]
    assert capsys.readouterr().out.count("5 shards:") == 2


def test_watching_ends_with_failures_told(bucket_set: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        found = bucket_set.read(f"claims/shard_{number:05d}.json")
        bucket_set.delete_if(f"claims/shard_{number:05d}.json", found.version)
    for number in (1, 2, 4):
        take(bucket_set, f"shard_{number:05d}", claim(number)).fail("broken")
    assert main(["shards", "status", bucket_set.url, "--watch"]) == 1
    assert "shard 4 failed: broken" in capsys.readouterr().out
