"""A dataset cut into shards: complete or absent, and numbered like the whole dataset."""

import json
from pathlib import Path

import pytest
from claiming import claim
from fakes.gcs import FakeGcs
from hypothesis import given
from hypothesis import strategies as st
from runs import changed

from layertap.cli import main
from layertap.config.fleet import CreateShardsConfig
from layertap.core.records import Document
from layertap.dataset import read_records
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import BadTaskError, DamageError, RunMismatchError, UsageError
from layertap.fleet.claims import claim_name, done_name, take
from layertap.fleet.sharded import RUN, create_shards, read_dataset
from layertap.fleet.status import free_shards, read_done, read_shard_states
from layertap.objects import open_store
from layertap.objects.base import ObjectStore

DONE = {"worker": 0, "host": "here", "samples": 4, "tokens": 400, "lost_by": []}


@pytest.fixture
def cut(demo_tasks: Path, place: str) -> CreateShardsConfig:
    return CreateShardsConfig(dataset_path=str(demo_tasks), output=place, num_shards=4)


def mixed(path: Path, kinds: list[bool]) -> str:
    """Tasks (True) and texts, as many of each as there are."""
    tasks = make_tasks(len(kinds), seed=2)
    write_tasks(path, tasks)
    rows = path.read_text().splitlines()
    texts = [json.dumps({"text": f"text {number}"}) for number in range(len(kinds))]
    path.write_text("\n".join(row if kind else text for row, text, kind in zip(rows, texts, kinds, strict=True)))
    return str(path)


@given(kinds=st.lists(st.booleans(), min_size=1, max_size=20), count=st.integers(1, 20), by_size=st.booleans())
def test_shards_are_the_dataset_and_know_their_first_sample(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[bool], count: int, by_size: bool
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = mixed(folder / "tasks.jsonl", kinds)
    cut = {"tasks_per_shard": count} if by_size else {"num_shards": min(count, len(kinds))}
    create_shards(CreateShardsConfig(dataset_path=path, output=str(folder / "out"), **cut))
    dataset = read_dataset(open_store(str(folder / "out")))
    together = []
    sample = 0
    for shard in dataset.shards:
        assert (shard.records_before, shard.first_sample(3)) == (len(together), sample)
        own = list(read_records(str(folder / "out" / shard.path)))
        assert len(own) == shard.records > 0
        together += own
        samples = sum(1 if isinstance(record, Document) else 3 * len(record.test) for record in own)
        assert shard.samples(3) == samples
        sample += samples
    assert together == list(read_records(path))
    sizes = [shard.records for shard in dataset.shards]
    assert (
        max(sizes[:-1], default=count) == min(sizes[:-1], default=count) == count
        if by_size
        else max(sizes) - min(sizes) <= 1
    )


def test_again_changes_nothing_and_another_cut_is_refused(cut: CreateShardsConfig, store: ObjectStore) -> None:
    assert not create_shards(cut)[1]
    before = {info.name: info.version for info in store.list()}
    assert create_shards(cut)[1]
    with pytest.raises(RunMismatchError, match=r"dataset\.json: holds another dataset, or another split"):
        create_shards(changed(cut, num_shards=3))
    assert {info.name: info.version for info in store.list()} == before


def test_what_an_interrupted_command_left_is_completed(cut: CreateShardsConfig, store: ObjectStore) -> None:
    create_shards(cut)
    manifest = store.read("dataset.json")
    second = store.read("tasks/shard_00001.jsonl")
    store.delete_if("dataset.json", manifest.version)
    store.delete_if("tasks/shard_00001.jsonl", second.version)
    with pytest.raises(UsageError, match=r"has no dataset\.json"):
        read_dataset(store)
    assert not create_shards(cut)[1]
    assert store.read("dataset.json").data == manifest.data
    assert store.read("tasks/shard_00001.jsonl").data == second.data


def test_shards_of_something_else_are_not_written_over(cut: CreateShardsConfig, store: ObjectStore) -> None:
    store.create("tasks/shard_00002.jsonl", b"mine\n")
    with pytest.raises(RunMismatchError, match=r"tasks/shard_00002\.jsonl"):
        create_shards(cut)
    assert store.read("dataset.json") is None


def test_bad_tasks_stop_it_or_are_listed(tmp_path: Path, demo_tasks: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    lines = demo_tasks.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{", *lines[2:]]))
    cut = CreateShardsConfig(dataset_path=str(path), output=str(tmp_path / "out"), num_shards=2)
    with pytest.raises(BadTaskError, match="line 3"):
        create_shards(cut)
    assert not (tmp_path / "out").exists()
    dataset, _ = create_shards(changed(cut, on_bad_task="skip"))
    assert [entry["where"] for entry in dataset.skipped] == [f"{path} line 3"]
    assert sum(shard.records for shard in dataset.shards) == len(lines)


@pytest.mark.parametrize("content", [b"[", b"{}", b'{"format_version": 2}', b'{"format_version": 1, "shards": 3}'])
def test_a_damaged_manifest_is_refused(store: ObjectStore, content: bytes) -> None:
    store.create("dataset.json", content)
    with pytest.raises(DamageError, match=r"dataset\.json: (is not a valid manifest|has format version 2)"):
        read_dataset(store)


def test_more_shards_than_records_are_refused(cut: CreateShardsConfig) -> None:
    with pytest.raises(UsageError, match="has 10 sound records"):
        create_shards(changed(cut, num_shards=11))


def test_a_place_without_conditions_is_refused(demo_tasks: Path) -> None:
    with pytest.raises(UsageError, match="workers cannot claim shards there"):
        create_shards(CreateShardsConfig(dataset_path=str(demo_tasks), output="memory://x", num_shards=2))


# -- the commands ----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["shards", *arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_create_status_reset(demo_tasks: Path, place: str, store: ObjectStore, capsys) -> None:
    create = ("create", "--dataset_path", str(demo_tasks), "--output", place, "--num_shards", "4")
    assert run(capsys, *create) == (0, f"10 records in 4 shards of 2 to 3 in {place}\n")
    assert run(capsys, *create)[1].startswith("already there: 10 records")
    for number, act in enumerate(("commit", "beat", "fail")):
        lease = take(store, f"shard_{number:05d}", claim(number))
        getattr(lease, act)(DONE | {"shard": f"shard_{number:05d}"} if act != "fail" else "too long")
    status, text = run(capsys, "status", place)
    assert status == 0
    assert text.startswith("4 shards: 1 done, 1 claimed, 0 lost, 1 failed, 1 free\n")
    assert ["1", "here", "1", "claimed"] in [line.split()[:4] for line in text.splitlines()]
    assert text.endswith("shard 2 failed: too long (worker 2@here)\n")
    found = json.loads(run(capsys, "status", place, "--json")[1])["shards"]
    assert found == {"done": [0], "claimed": [1], "lost": [], "failed": [2], "free": [3]}

    status, text = run(capsys, "reset", place, "0", "1")
    assert status == 2
    assert "worker 1@here is busy with it" in text
    assert run(capsys, "reset", place, "0", "2", "3") == (0, "freed 1 of 3 shards; the others were already free\n")
    assert run(capsys, "reset", place, "9")[0] == 2
    assert run(capsys, "reset", place)[0] == 2
    store.create(RUN, b"{}")
    assert run(capsys, "reset", place, "--all", "--force")[0] == 0
    assert run(capsys, "status", place)[1].startswith("4 shards: 0 done, 0 claimed, 0 lost, 0 failed, 4 free\n")
    assert store.read(RUN) is None


def test_what_workers_agreed_on_is_put_back_when_one_of_them_claims_meanwhile(
    cut: CreateShardsConfig, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_shards(cut)
    store.create(RUN, b"{}")
    delete = store.delete_if

    def claimed_first(name: str, version: str) -> bool:
        take(store, "shard_00000", claim())
        return delete(name, version)

    monkeypatch.setattr(store, "delete_if", claimed_first)
    free_shards(store, read_dataset(store).shards, force=False)
    assert store.read(RUN) is not None
    assert [info.name for info in store.list("claims/")] == [claim_name("shard_00000")]


def test_a_damaged_claim_can_be_reset(cut: CreateShardsConfig, store: ObjectStore, place: str, capsys) -> None:
    create_shards(cut)
    store.create(claim_name("shard_00001"), b"?")
    assert run(capsys, "status", place)[0] == 1
    assert run(capsys, "reset", place, "1")[0] == 0
    assert run(capsys, "status", place)[0] == 0


def test_a_lost_lease_is_told_by_the_far_end_s_clock(demo_tasks: Path, gcs: FakeGcs, bucket: ObjectStore) -> None:
    create_shards(CreateShardsConfig(dataset_path=str(demo_tasks), output=bucket.url, num_shards=2))
    assert take(bucket, "shard_00001", claim(5)) is not None
    gcs.state.skew = 123
    free, lost = read_shard_states(bucket, read_dataset(bucket))
    assert (free.condition, lost.condition) == ("free", "lost")
    assert free_shards(bucket, [lost.shard], force=False) == 1


def test_looking_costs_two_listings_and_two_requests_for_each_claim(
    demo_tasks: Path, gcs: FakeGcs, bucket: ObjectStore
) -> None:
    create_shards(CreateShardsConfig(dataset_path=str(demo_tasks), output=bucket.url, num_shards=10))
    for number in range(6):
        lease = take(bucket, f"shard_{number:05d}", claim(number))
        if number < 3:
            lease.commit({"shard": lease.shard})
    dataset = read_dataset(bucket)
    gcs.faults.log.clear()
    read_shard_states(bucket, dataset)
    assert [gcs.faults.count(kind) for kind in ("list", "stat", "media")] == [2, 3, 3]
    assert len(gcs.faults.log) == 8
    assert read_done(bucket, "shard_00001") == {"shard": "shard_00001"}
    assert read_done(bucket, "shard_00009") is None
    bucket.create(done_name("shard_00009"), b'{"shard": "shard_00008"}')
    with pytest.raises(DamageError, match="is not a valid done-manifest"):
        read_done(bucket, "shard_00009")
