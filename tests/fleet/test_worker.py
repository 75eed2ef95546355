"""One worker in this process: what it takes and leaves, where it continues, what it refuses."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import fleets
import pytest
import shards
from claiming import claim
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fleets import assert_same, cut, done, union, worker_of
from runs import changed, out

from layertap.check.verify import verify
from layertap.cli import main
from layertap.commands import extract as command
from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.errors import (
    DamageError,
    InputError,
    LayertapError,
    ModelError,
    RunMismatchError,
    StorageError,
    UsageError,
    WorkersFailedError,
)
from layertap.fleet.attempt import Attempts
from layertap.fleet.claiming import Claimer
from layertap.fleet.claims import Lease, claim_name, read_claim, take, take_over
from layertap.fleet.sharded import RUN, read_dataset
from layertap.fleet.worker import WorkSummary, work
from layertap.objects import open_store
from layertap.objects.base import ObjectInfo, ObjectStore
from layertap.objects.local import LocalStore
from layertap.shards.writer import ShardWriter

COUNT = 3


EVERYWHERE = pytest.mark.parametrize("place", ["folder", "gcs"], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of the dataset: a folder, unless a test asks for both kinds of places."""
    if getattr(request, "param", "folder") == "gcs":
        request.getfixturevalue("gcs")
        return "gs://bucket/dataset"
    return str(tmp_path / "dataset")


@pytest.fixture
def fleet(config: ExtractConfig, place: str, tmp_path: Path) -> ExtractConfig:
    """A worker of three shards, with float32 products, so that packing changes only rounding."""
    exact = changed(config, compute_dtype="float32")
    cut(config.dataset_path, place, COUNT)
    return worker_of(exact, place)


@pytest.fixture
def whole(config: ExtractConfig, tmp_path: Path) -> dict[int, dict[str, Any]]:
    """What a run over the whole dataset writes."""
    return fleets.whole(changed(config, compute_dtype="float32"), tmp_path)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, commits: int, error: BaseException) -> None:
    """Let the commit of activation shards fail after so many."""
    commit = ShardWriter.commit
    made = 0

    def failing(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        nonlocal made
        made += 1
        if made > commits:
            raise error
        commit(self, *arguments, **options)

    monkeypatch.setattr(ShardWriter, "commit", failing)


@EVERYWHERE
def test_the_union_is_what_one_run_over_everything_gives(fleet: ExtractConfig, store: ObjectStore, whole) -> None:
    summary = work(fleet)
    assert (summary.shards, summary.lost) == (COUNT, 0)
    assert_same(union(store, layer=3), whole, 1e-5)
    assert not list(store.list("claims/"))
    for manifest in done(store):
        assert verify(Path(manifest["output"])).sound
        assert manifest["output"] == str(out(fleet) / "tpu_0" / manifest["shard"] / manifest["attempt"])
    assert "committed 0 dataset shards" in work(fleet).describe()


@pytest.mark.whole
def test_the_model_is_loaded_and_compiled_once(fleet: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    from layertap.model import weights

    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *arguments: loads.append(1) or load(*arguments))
    work(fleet)
    assert len(loads) == 1


@pytest.mark.whole
def test_two_workers_share_and_the_order_can_be_chosen(fleet: ExtractConfig, place: str, store: ObjectStore) -> None:
    first = worker_of(fleet, place, 0, preferred_shard_id=2, max_shards=1)
    assert work(first).shards == 1
    assert [manifest["shard"] for manifest in done(store)] == ["shard_00002"]
    assert work(worker_of(fleet, place, 1)).shards == COUNT - 1
    assert [manifest["worker"] for manifest in done(store)] == [1, 1, 0]


@pytest.mark.whole
@EVERYWHERE
def test_an_interrupted_worker_gives_its_shard_back_and_goes_on_in_it(
    fleet: ExtractConfig, place: str, store: ObjectStore
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            work(worker_of(fleet, place, preferred_shard_id=1))
    assert not list(store.list("claims/"))
    (attempt,) = (path for path in (out(fleet) / "tpu_0" / "shard_00001").iterdir() if path.is_dir())
    before = shards.contents(attempt)
    assert len(shards.described(before)["shards"]) == 2
    work(fleet)
    manifest = done(store)[1]
    assert manifest["attempt"] == attempt.name
    after = shards.contents(attempt)
    assert all(after[name] == data for name, data in before.items() if name.startswith("shard_"))


@pytest.mark.whole
@EVERYWHERE
def test_a_worker_that_died_takes_its_own_shard_over_at_once(
    fleet: ExtractConfig, place: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1, KeyboardInterrupt())
        patch.setattr(Lease, "release", lambda _: None)
        with pytest.raises(KeyboardInterrupt):  # as if killed: nothing is given back
            work(worker_of(fleet, place, preferred_shard_id=1))
    (info,) = store.list("claims/")
    assert info.name == claim_name("shard_00001")
    patient = SimpleNamespace(sleep=lambda _: pytest.fail("it waited"))
    monkeypatch.setattr("layertap.fleet.claiming.time", patient)
    assert work(fleet).shards == COUNT
    assert done(store)[1]["lost_by"] == []


@pytest.mark.whole
def test_another_worker_waits_for_the_lease_and_begins_again(
    fleet: ExtractConfig, place: str, store: ObjectStore, whole
) -> None:
    dead = take(store, "shard_00001", claim(7, seconds=1))
    assert dead is not None
    assert work(worker_of(fleet, place, lease_seconds=8.0)).shards == COUNT
    manifest = done(store)[1]
    assert manifest["lost_by"] == ["7@here"]
    assert manifest["attempt"] != dead.claim.attempt
    assert_same(union(store, layer=3), whole, 1e-5)


@EVERYWHERE
def test_a_commit_that_nobody_settled_is_settled_without_waiting_for_the_lease(
    fleet: ExtractConfig, place: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = take(store, "shard_00001", claim(7, seconds=600))
    assert dead is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layertap.fleet.claims.settle", lambda *_: None)
        dead.commit({"shard": "shard_00001", "worker": 7})
    assert main(["shards", "status", place]) == 0
    assert "shard 1: is committed; the next worker" in capsys.readouterr().out
    assert work(worker_of(fleet, place, lease_seconds=1.0)).shards == COUNT - 1
    assert [manifest["worker"] for manifest in done(store)] == [0, 7, 0]
    assert not list(store.list("claims/"))


@pytest.mark.whole
@EVERYWHERE
def test_a_worker_that_is_robbed_commits_nothing_of_that_shard(
    fleet: ExtractConfig, place: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes the shard over while this one computes, and commits it."""
    commit = ShardWriter.commit
    robbed: list[str] = []

    def rob(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        if not robbed:
            (info,) = store.list("claims/")
            shard = info.name.split("/")[1].removesuffix(".json")
            robbed.append(shard)
            lease = take_over(store, shard, read_claim(store, shard)[0], claim(9))
            lease.commit({"shard": shard, "worker": 9, "files": []})
        commit(self, *arguments, **options)

    monkeypatch.setattr(ShardWriter, "commit", rob)
    summary = work(fleet)
    assert (summary.shards, summary.lost) == (COUNT - 1, 1)
    assert [manifest["shard"] for manifest in done(store) if manifest["worker"] == 9] == robbed


@pytest.mark.whole
def test_a_shard_that_cannot_be_extracted_is_left_out_and_told(
    fleet: ExtractConfig, place: str, store: ObjectStore, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = store.read("tasks/shard_00001.jsonl")
    store.replace_if("tasks/shard_00001.jsonl", found.data.replace(b"1", b"2", 1), found.version)
    no_wait = SimpleNamespace(sleep=lambda _: pytest.fail("it waited for a shard that has failed"))
    monkeypatch.setattr("layertap.fleet.claiming.time", no_wait)
    for _ in range(2):  # the second worker finds it failed
        with pytest.raises(WorkersFailedError, match=r"but these failed: shard_00001"):
            work(fleet)
    assert [manifest["shard"] for manifest in done(store)] == ["shard_00000", "shard_00002"]
    assert main(["shards", "status", place]) == 0
    assert "tasks/shard_00001.jsonl: was changed" in capsys.readouterr().out
    changed_now = store.read("tasks/shard_00001.jsonl")
    store.replace_if("tasks/shard_00001.jsonl", found.data, changed_now.version)
    assert main(["shards", "reset", place, "1"]) == 0
    assert work(fleet).shards == 1


def test_a_worker_that_left_everything_out_does_not_end_well(
    fleet: ExtractConfig, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"committed 3 dataset shards, 0 samples.* Nothing was extracted"):
        command(changed(fleet, max_seq_length=256, overlong="skip"))
    assert command(changed(fleet, max_seq_length=256, overlong="skip")) == 0  # nothing was left to do
    assert "committed 0 dataset shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shards_done", "samples", "leads", "nothing"),
    [(2, 0, True, True), (2, 5, True, False), (0, 0, True, False), (2, 0, False, False)],
)
def test_only_the_host_that_counts_samples_can_miss_them(
    shards_done: int, samples: int, leads: bool, nothing: bool
) -> None:
    summary = WorkSummary(0, shards_done, 0, samples, samples * 10, 1.0, leads=leads)
    assert summary.nothing_extracted == nothing


def test_samples_that_are_too_long_fail_their_shards(fleet: ExtractConfig, store: ObjectStore) -> None:
    with pytest.raises(WorkersFailedError):
        work(changed(fleet, max_seq_length=256))
    assert "--max_seq_length is 256" in read_claim(store, "shard_00000")[1].error


@pytest.mark.whole
def test_what_is_wrong_with_a_worker_fails_no_shard(fleet: ExtractConfig, store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--checkpoint_dir .* is a file"):
        work(changed(fleet, checkpoint_dir=str(tmp_path / "file" / "below")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layertap.model.weights.load", Mock(side_effect=ModelError("damaged")))
        with pytest.raises(ModelError, match="damaged"):
            work(fleet)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1, StorageError("the disk is full"))
        with pytest.raises(StorageError, match="full"):
            work(fleet)
    assert not list(store.list("claims/"))
    work(fleet)
    assert len(done(store)) == COUNT


@pytest.mark.whole
def test_workers_with_other_settings_are_refused(fleet: ExtractConfig, place: str) -> None:
    work(worker_of(fleet, place, max_shards=1))
    other = worker_of(changed(fleet, layers_to_extract=(0,)), place, 1)
    with pytest.raises(RunMismatchError, match=r"layers: \[1, 3\] there, \[0\] now"):
        work(other)
    assert main(["shards", "reset", place, "--all"]) == 0
    # On a disk that holds an attempt with the old settings, too.
    assert work(worker_of(changed(fleet, layers_to_extract=(0,)), place)).shards == COUNT


@pytest.mark.parametrize("others", [None, b'{"layers": [0]}'], ids=["nobody else", "other workers"])
def test_a_reset_between_agreeing_and_claiming_is_noticed(
    fleet: ExtractConfig, place: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, others: bytes | None
) -> None:
    follow = Claimer.take_next

    def after_a_reset(self: Claimer) -> Any:
        assert main(["shards", "reset", place, "--all"]) == 0
        assert store.read(RUN) is None
        if others is not None:
            store.create(RUN, others)
        return follow(self)

    monkeypatch.setattr(Claimer, "take_next", after_a_reset)
    if others is not None:
        with pytest.raises(RunMismatchError, match=r"layers: \[0\] there"):
            work(worker_of(fleet, place, max_shards=1))
        assert not list(store.list("claims/"))
    else:
        assert work(worker_of(fleet, place, max_shards=1)).shards == 1
        assert json.loads(store.read(RUN).data)["layers"] == [1, 3]


def test_two_processes_with_one_id_on_one_disk_are_refused(fleet: ExtractConfig) -> None:
    from layertap.objects.folder_lock import exclusive

    with exclusive(out(fleet) / "tpu_0"), pytest.raises(StorageError, match="another run is writing here"):
        work(fleet)


@pytest.fixture
def uploader(config: ExtractConfig, gcs: FakeGcs, bucket: ObjectStore) -> ExtractConfig:
    """Worker 4. Its dataset and its output are in a bucket, and its disk keeps only manifests."""
    cut(config.dataset_path, bucket.url, COUNT)
    upload = UploadConfig(gcs_bucket=BUCKET, delete_local_after_upload=True)
    return changed(worker_of(config, bucket.url, 4), upload=upload)


def assert_uploaded(gcs: FakeGcs, done_manifest: dict[str, Any]) -> None:
    where = f"activations/tpu_4/{done_manifest['shard']}/{done_manifest['attempt']}"
    assert done_manifest["output"] == f"gs://{BUCKET}/{where}"
    held = gcs.contents(BUCKET, f"{where}/")
    assert all(
        len(held[file["path"]]) == file["bytes"] for file in [*done_manifest["files"], done_manifest["manifest"]]
    )


def delete_output(url: str, kept: str | None = None) -> None:
    with closing(open_store(url)) as output:
        assert all(output.delete_if(info.name, info.version) for info in list(output.list()) if info.name != kept)


@pytest.mark.whole
@pytest.mark.parametrize("kept", ["metadata.json", None], ids=["files deleted", "all deleted"])
def test_a_shard_that_is_reset_is_extracted_again_on_the_disk_that_had_it(
    uploader: ExtractConfig, gcs: FakeGcs, bucket: ObjectStore, kept: str | None
) -> None:
    """The shard's output was deleted in the bucket, and its worker still has the manifest."""
    work(uploader)
    for manifest in done(bucket):
        assert_uploaded(gcs, manifest)
    before = done(bucket)[1]
    delete_output(before["output"], kept)
    assert main(["shards", "reset", bucket.url, "1"]) == 0
    assert work(uploader).shards == 1
    after = done(bucket)[1]
    assert after["files"] == before["files"]
    assert_uploaded(gcs, after)


@pytest.mark.whole
def test_a_shard_whose_unfinished_output_was_deleted_begins_again(
    uploader: ExtractConfig, gcs: FakeGcs, bucket: ObjectStore
) -> None:
    """No done-manifest names the output, so it may go. Its worker still has the manifest."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            work(changed(uploader, sharded=dataclasses.replace(uploader.sharded, preferred_shard_id=1)))
    delete_output(f"gs://{BUCKET}/activations/tpu_4/shard_00001")
    with pytest.raises(DamageError, match="is gone"):
        work(changed(uploader, sharded=dataclasses.replace(uploader.sharded, preferred_shard_id=1)))
    assert not list(bucket.list("claims/"))
    assert work(uploader).shards == COUNT
    assert_uploaded(gcs, done(bucket)[1])


@pytest.mark.whole
def test_what_a_shard_costs_in_requests(config: ExtractConfig, gcs: FakeGcs, bucket: ObjectStore) -> None:
    """docs/fleet.md says so."""

    def requests_for(shards: int) -> Counter[str]:
        gcs.faults.log.clear()
        assert work(worker_of(config, bucket.url, max_shards=shards)).shards == shards
        return Counter(entry.operation for entry in gcs.faults.log)

    cut(config.dataset_path, bucket.url, 5)
    requests_for(1)  # which also agrees on what is extracted
    one, two = requests_for(1), requests_for(2)
    assert two - one == {"list": 2, "insert": 3, "stat": 3, "media": 1, "delete": 1}


def test_a_place_that_is_no_sharded_dataset_is_named(config: ExtractConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no dataset\.json"):
        work(worker_of(config, str(tmp_path / "nothing")))
    cut(config.dataset_path, str(tmp_path / "set"), 2)
    with pytest.raises(UsageError, match="there is no dataset shard 9; give 0 to 1"):
        work(worker_of(config, str(tmp_path / "set"), preferred_shard_id=9))
    (tmp_path / "set" / "run.json").write_text("{")
    with pytest.raises(LayertapError, match=r"run\.json: is not JSON"):
        work(worker_of(config, str(tmp_path / "set")))


def test_the_place_of_the_output_is_listed_once_however_many_shards_are_left(demo_tasks: Path, tmp_path: Path) -> None:
    class Counted(LocalStore):
        listings = 0

        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            self.listings += 1
            return super().list(prefix)

    cut(demo_tasks, str(tmp_path / "dataset"), 10)
    place = Counted(tmp_path / "tpu_0")
    place.create("shard_00009/some/metadata.json.gone", b"")
    place.create("shard_00009/some.ended", b"")
    with closing(open_store(str(tmp_path / "dataset"))) as store:
        attempts = Attempts(Mock(), store, place, tmp_path, Mock())
        claimer = Claimer(store, read_dataset(store), lambda _: claim(), attempts.find_unfinished, lambda _: None)
        for left in (10, 9, 8):
            assert claimer.take_next() is not None, left
    assert place.listings == 1
