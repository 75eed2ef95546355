"""Runs that copy their output to a bucket: what is stored, and where another start continues."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import shards
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3
from runs import changed, extract_some, finished, manifest, out

from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.errors import AccessError, DamageError, RunMismatchError, StorageError, UsageError
from layertap.objects import open_store
from layertap.pipeline.run import extract

PREFIX = "activations/tpu_0/"


@pytest.fixture
def uploading(config: ExtractConfig, gcs: FakeGcs) -> ExtractConfig:
    return with_upload(config, upload_to_gcs=True, gcs_bucket=BUCKET)


def with_upload(config: ExtractConfig, **settings: Any) -> ExtractConfig:
    return changed(config, upload=UploadConfig(**settings))


def elsewhere(config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """The same run on a machine with an empty disk."""
    return changed(
        config, output_dir=str(tmp_path / "new" / "out"), checkpoint_dir=str(tmp_path / "new" / "checkpoints")
    )


def wipe(config: ExtractConfig) -> None:
    shutil.rmtree(config.output_dir)
    shutil.rmtree(config.checkpoint_dir)


def in_bucket(gcs: FakeGcs) -> dict[str, bytes]:
    """The output in the bucket, without the checkpoint beside it."""
    found = gcs.contents(BUCKET, PREFIX)
    checkpoint = json.loads(found.pop("checkpoint_worker_0.json"))
    assert checkpoint["output_dir"] == f"gs://{BUCKET}/activations/tpu_0"
    assert checkpoint["shards"] == len(shards.described(found)["shards"])
    return found


@pytest.mark.whole
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_the_bucket_holds_what_the_folder_holds(uploading: ExtractConfig, gcs: FakeGcs, form: Any) -> None:
    extract(changed(uploading, format=form))
    assert in_bucket(gcs) == shards.contents(out(uploading))
    assert manifest(uploading)["complete"]


@pytest.mark.whole
def test_a_shard_counts_only_after_its_files_and_the_checkpoint_comes_last(uploading, gcs: FakeGcs) -> None:
    seen: list[tuple[set[str], set[str], int]] = []

    def look() -> None:
        here = gcs.contents(BUCKET, PREFIX)
        named = {file["path"] for shard in shards.described(here)["shards"] for file in shard["files"]}
        known = json.loads(here.get("checkpoint_worker_0.json", b'{"shards": 0}'))["shards"]
        seen.append((set(here), named, known))

    gcs.faults.plan("call_after", "insert", "metadata.json", times=1000, action=look)
    extract(uploading)
    counts = [len(named) for _, named, _ in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert all(named <= here for here, named, _ in seen)
    assert all(known <= len(named) for _, named, known in seen)


@pytest.mark.whole
def test_a_machine_with_an_empty_disk_goes_on_from_the_bucket(uploading, gcs: FakeGcs, tmp_path: Path) -> None:
    finished(changed(uploading, upload=UploadConfig()))
    whole = shards.contents(out(uploading))
    wipe(uploading)
    extract_some(uploading, 3)
    wipe(uploading)
    sent = gcs.faults.count("insert", "shard_0001.pkl.gz")
    summary = extract(uploading)
    assert summary.resumed_shards == 3
    assert gcs.faults.count("insert", "shard_0001.pkl.gz") == sent  # what is there is not sent again
    assert in_bucket(gcs) | {"metadata.json": b""} == whole | {"metadata.json": b""}
    assert "shard_0001.pkl.gz" not in shards.contents(out(uploading))


@pytest.mark.whole
def test_another_folder_on_another_machine_takes_the_bucket_s_manifest_over(uploading, gcs, tmp_path: Path) -> None:
    extract_some(uploading, 2)
    there = elsewhere(uploading, tmp_path)
    extract(there)
    assert in_bucket(gcs)["metadata.json"] == (out(there) / "metadata.json").read_bytes()
    assert manifest(there)["config"]["output_dir"] == uploading.output_dir  # as the first start had it


@pytest.mark.whole
@pytest.mark.parametrize("count", [3, None])
def test_what_is_committed_here_and_not_there_is_uploaded_by_the_next_start(uploading, gcs: FakeGcs, count) -> None:
    alone = changed(uploading, upload=UploadConfig())
    finished(alone) if count is None else extract_some(alone, count)
    assert (extract(uploading).samples == 0) == (count is None)
    assert in_bucket(gcs) == shards.contents(out(uploading))


@pytest.mark.whole
def test_an_object_that_vanished_is_uploaded_again_or_missed(uploading, gcs: FakeGcs, tmp_path: Path) -> None:
    extract(uploading)
    whole = gcs.contents(BUCKET, PREFIX)
    del gcs.state.objects[BUCKET][PREFIX + "shard_0002.pkl.gz"]
    gcs.put(BUCKET, PREFIX + "shard_0003.pkl.gz", b"other bytes")
    extract(uploading)
    assert gcs.contents(BUCKET, PREFIX) == whole
    del gcs.state.objects[BUCKET][PREFIX + "shard_0002.pkl.gz"]
    with pytest.raises(DamageError, match=r"gs://bucket/activations/tpu_0/shard_0002.pkl.gz: missing, or not what"):
        extract(elsewhere(uploading, tmp_path))


@pytest.mark.whole
def test_another_run_in_the_bucket_or_the_folder_is_refused(uploading, gcs: FakeGcs, tmp_path: Path) -> None:
    extract(uploading)
    before = gcs.contents(BUCKET)
    other = changed(elsewhere(uploading, tmp_path), random_seed=7)
    with pytest.raises(RunMismatchError, match=r"gs://bucket/activations/tpu_0 holds another run's .*gcs_prefix"):
        extract(other)
    extract_some(changed(other, upload=UploadConfig()), 1)
    here = shards.contents(out(other))
    with pytest.raises(RunMismatchError, match="random_seed"):  # though the bucket is further on
        extract(changed(other, random_seed=uploading.random_seed))
    assert shards.contents(out(other)) == here
    assert gcs.contents(BUCKET) == before


def test_objects_without_a_manifest_are_nobody_s_to_write_over(uploading, gcs: FakeGcs) -> None:
    gcs.put(BUCKET, PREFIX + "shard_0001.pkl.gz", b"precious")
    with pytest.raises(StorageError, match=r"holds 1 objects .* but no metadata\.json"):
        extract(uploading)
    assert gcs.contents(BUCKET, PREFIX) == {"shard_0001.pkl.gz": b"precious"}


@pytest.mark.whole
def test_deleting_leaves_what_is_not_verified(uploading, gcs: FakeGcs) -> None:
    deleting = changed(uploading, upload=UploadConfig(gcs_bucket=BUCKET, delete_local_after_upload=True))
    gcs.faults.plan("refuse", "insert", "shard_0003.pkl.gz", times=10_000, status=403)
    with pytest.raises(AccessError):
        extract(deleting)
    left = set(shards.contents(out(uploading)))
    assert "shard_0003.pkl.gz" in left
    assert not left & {"shard_0001.pkl.gz", "shard_0002.pkl.gz"}
    gcs.faults.planned.clear()
    extract(deleting)
    assert set(shards.contents(out(uploading))) == {"metadata.json", "manifest/part_0001.jsonl"}
    files = in_bucket(gcs)
    named = [file["path"] for shard in shards.described(files)["shards"] for file in shard["files"]]
    assert sorted(files) == sorted([*named, "manifest/part_0001.jsonl", "metadata.json"])


@pytest.mark.whole
def test_with_deleting_the_local_disk_holds_a_few_shards_at_most(uploading, gcs: FakeGcs) -> None:
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, len(list(out(uploading).glob("shard_*.gz"))))

    gcs.faults.plan("slow", "insert", "shard_0001.pkl.gz", seconds=0.3)
    gcs.faults.plan("call", "insert", "metadata.json", times=1000, action=look)
    extract(
        changed(uploading, upload=UploadConfig(gcs_bucket=BUCKET, delete_local_after_upload=True, uploads_at_once=1))
    )
    assert len(manifest(uploading)["shards"]) > 5
    assert 0 < most <= 4  # one allowed behind, one beyond it that waits for room, two with the writer


@pytest.mark.whole
def test_when_retries_run_out_the_run_stops_and_the_next_one_uploads_the_rest(uploading, gcs: FakeGcs) -> None:
    impatient = changed(uploading, upload=UploadConfig(gcs_bucket=BUCKET, upload_retry_seconds=0.1))
    gcs.faults.plan("refuse", "insert", "shard_0002.pkl.gz", times=10_000)
    with pytest.raises(StorageError, match=r"shard_0002\.pkl\.gz: failed \d+ times"):
        extract(impatient)
    there = shards.described(gcs.contents(BUCKET, PREFIX))
    assert len(there["shards"]) == 1
    gcs.faults.planned.clear()
    extract(impatient)
    assert in_bucket(gcs) == shards.contents(out(uploading))


@pytest.mark.whole
def test_a_storm_of_faults_changes_nothing(uploading, gcs: FakeGcs) -> None:
    gcs.faults.storm = 0.2
    gcs.faults.plan("refuse", "delete", "owner.json", times=2)
    extract(uploading)
    gcs.faults.storm = 0.0
    assert in_bucket(gcs) == shards.contents(out(uploading))
    assert any(request.fault for request in gcs.faults.log)


@pytest.mark.parametrize(("bucket", "error"), [("absent", UsageError), ("locked", AccessError)])
def test_a_bucket_that_is_missing_or_forbidden_stops_the_run_before_it_begins(uploading, gcs, bucket, error) -> None:
    gcs.state.objects["locked"] = {}
    gcs.state.forbidden.add("locked")
    with pytest.raises(error, match=bucket):
        extract(changed(uploading, upload=UploadConfig(gcs_bucket=bucket)))
    assert shards.contents(out(uploading)) == {}


def test_the_manifest_in_the_bucket_is_not_written_over_a_stranger_s(uploading, gcs: FakeGcs) -> None:
    def usurp() -> None:
        gcs.put(BUCKET, PREFIX + "metadata.json", b"{}")

    gcs.faults.plan("call", "insert", "shard_0002.pkl.gz", action=usurp)
    with pytest.raises(StorageError, match=r"metadata\.json: another process has written it"):
        extract(uploading)
    assert gcs.contents(BUCKET, PREFIX)["metadata.json"] == b"{}"


@pytest.mark.whole
def test_without_checkpointing_output_is_uploaded_once(uploading, gcs: FakeGcs, tmp_path: Path) -> None:
    once = changed(uploading, checkpointing=False)
    extract(once)
    assert gcs.contents(BUCKET, PREFIX) == shards.contents(out(once))
    with pytest.raises(RunMismatchError, match="no_checkpointing"):
        extract(elsewhere(once, tmp_path))


@pytest.mark.whole
def test_a_folder_will_do_as_well(config: ExtractConfig, tmp_path: Path) -> None:
    copied = with_upload(config, upload_to=str(tmp_path / "shared"))
    extract_some(copied, 2)
    wipe(copied)
    extract(copied)
    extract(with_upload(elsewhere(config, tmp_path), upload_to=str(tmp_path / "other")))
    copies = [shards.contents(tmp_path / name / "tpu_0") for name in ("shared", "other")]
    for copy in copies:
        for name in ("metadata.json", "checkpoint_worker_0.json", ".objects.lock"):
            del copy[name]
    assert copies[0] == copies[1] != {}


@pytest.mark.whole
def test_s3_will_do_as_well(config: ExtractConfig, s3: FakeS3) -> None:
    copied = with_upload(config, upload_to=f"s3://{BUCKET}/some/where", delete_local_after_upload=True)
    extract_some(copied, 2)
    wipe(copied)
    extract(copied)
    store = open_store(f"s3://{BUCKET}/some/where/tpu_0")
    named = {file["path"]: file["bytes"] for shard in manifest(copied)["shards"] for file in shard["files"]}
    written = store.read("metadata.json").data
    assert written == (out(copied) / "metadata.json").read_bytes()
    found = {info.name: info.size for info in store.list()}
    assert found.pop("checkpoint_worker_0.json")
    part = len(store.read("manifest/part_0001.jsonl").data)
    assert found == named | {"metadata.json": len(written), "manifest/part_0001.jsonl": part}
