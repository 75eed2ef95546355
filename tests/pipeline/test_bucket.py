"""Runs that write to a bucket and no disk: what is stored, and where the next start continues."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import shards
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3
from runs import changed, finished, out, small_run

import layertap
from layertap.check.verify import verify_folder
from layertap.cli import main
from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.errors import AccessError, DamageError, RunMismatchError, StorageError, UsageError
from layertap.objects import open_store
from layertap.pipeline.run import extract

URL = f"gs://{BUCKET}/some/run"
PREFIX = "some/run/"


@pytest.fixture
def direct(tiny_model: Path, few_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractConfig:
    """A run that writes to the bucket. It must leave nothing in the folder where it starts."""
    monkeypatch.chdir(tmp_path)
    return small_run(few_tasks, tiny_model, tmp_path, output_dir=URL, checkpoint_dir="./checkpoints")


@pytest.fixture
def expected(config: ExtractConfig) -> dict[str, bytes]:
    """What the same run leaves in a folder, without the places that the manifest names."""
    finished(config)
    return comparable(shards.contents(out(config)))


def comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """The output without its checkpoint, its metrics, and the settings that name its place."""
    kept = {name: data for name, data in files.items() if not name.startswith(("metrics/", "checkpoint_worker"))}
    head = json.loads(kept["metadata.json"])
    for name in ("output_dir", "checkpoint_dir", "upload"):
        del head["config"][name]
    return kept | {"metadata.json": json.dumps(head).encode()}


def in_bucket(gcs: FakeGcs) -> dict[str, bytes]:
    """The output in the bucket, as `comparable` returns it. This also checks its checkpoint."""
    found = gcs.contents(BUCKET, PREFIX)
    checkpoint = json.loads(found["checkpoint_worker_0.json"])
    assert checkpoint["output_dir"] == URL
    assert checkpoint["shards"] == len(shards.described(found)["shards"])
    return comparable(found)


def test_the_bucket_holds_what_a_folder_would_and_the_disk_nothing(direct, expected, gcs: FakeGcs, tmp_path) -> None:
    before = set(tmp_path.rglob("*"))
    summary = extract(direct)
    assert in_bucket(gcs) == expected
    assert set(tmp_path.rglob("*")) == before
    assert f"shards in {URL}, each verified there" in summary.describe()
    assert "owner.json" not in gcs.contents(BUCKET, PREFIX)


@pytest.mark.whole
def test_a_start_after_an_end_says_so_and_uploads_nothing(direct, expected, gcs: FakeGcs) -> None:
    extract(direct)
    sent = gcs.faults.count("insert", ".gz")
    summary = extract(direct)
    assert f"already complete: {summary.manifest.samples} samples" in summary.describe()
    assert gcs.faults.count("insert", ".gz") == sent
    assert in_bucket(gcs) == expected


@pytest.mark.whole
@pytest.mark.parametrize("operation", ["call", "call_after"])
def test_what_no_manifest_names_is_written_again(direct, expected, gcs: FakeGcs, operation: Any) -> None:
    """A run that ends between upload and commit, or right after the commit."""
    seen = 0

    def strike() -> bool:
        nonlocal seen
        seen += 1
        if seen == 4:  # the first is of a manifest without shards
            gcs.faults.planned.clear()
            gcs.faults.plan("refuse", "insert", "", times=10_000, status=403)
        return seen == 4

    gcs.faults.plan(operation, "insert", "metadata.json", times=1000, action=strike)
    with pytest.raises(AccessError):
        extract(direct)
    gcs.faults.planned.clear()
    left = gcs.contents(BUCKET, PREFIX)
    named = {file["path"] for shard in shards.described(left)["shards"] for file in shard["files"]}
    assert named < {name for name in left if "shard_" in name} or operation == "call_after"
    summary = extract(direct)
    assert summary.resumed_shards == len({name for name in named if name.endswith(".gz")}) > 0
    assert in_bucket(gcs) == expected


@pytest.mark.whole
def test_a_storm_of_faults_changes_nothing(direct, expected, gcs: FakeGcs) -> None:
    gcs.faults.storm = 0.2
    gcs.faults.plan("lose", "insert", "metadata.json", times=2)
    gcs.faults.plan("vanish", "insert", "shard_0002.pkl.gz")
    gcs.faults.plan("corrupt", "insert", "shard_0003.pkl.gz")
    gcs.faults.plan("slow", "insert", "shard_0004.pkl.gz", seconds=0.5)
    extract(direct)
    gcs.faults.storm = 0.0
    assert in_bucket(gcs) == expected
    assert any(request.fault for request in gcs.faults.log)


def test_so_many_shards_are_on_their_way_and_no_more(direct, gcs: FakeGcs) -> None:
    lock, now, most = threading.Lock(), 0, 0
    held = threading.Event()

    def begin() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 2:
                held.set()
        held.wait(20)  # until a second one is on its way
        with lock:
            now -= 1

    gcs.faults.plan("call", "insert", ".gz", times=1000, action=begin)
    extract(changed(direct, upload=UploadConfig(uploads_at_once=2)))
    assert most == 2


@pytest.mark.whole
def test_uploads_that_lag_hold_the_run_back(direct, gcs: FakeGcs) -> None:
    """Shards are in memory, so none may be encoded behind those that wait for a bucket."""
    inserted = threading.Event()
    waiting: list[int] = []

    def hold() -> None:
        inserted.wait(20)

    gcs.faults.plan("call", "insert", "shard_0001.pkl.gz", action=hold)
    gcs.faults.plan("call", "insert", "shard_0002.pkl.gz", action=lambda: waiting.append(2))
    timer = threading.Timer(3.0, inserted.set)
    timer.start()
    summary = extract(changed(direct, upload=UploadConfig(uploads_at_once=1)))
    timer.join()
    assert waiting == [2]
    assert summary.waited["uploading"] > 0
    assert summary.manifest.complete


@pytest.mark.slow
def test_of_two_runs_at_one_place_the_second_is_refused(direct, gcs: FakeGcs) -> None:
    refusals: list[str] = []

    def second() -> None:
        with pytest.raises(StorageError, match="--output_dir") as raised:
            extract(direct)
        refusals.append(str(raised.value))

    gcs.faults.plan("slow", "insert", "shard_0002.pkl.gz", seconds=15.0)  # a sign of life comes meanwhile
    thread = threading.Thread(target=second)
    gcs.faults.plan("call", "insert", "shard_0001.pkl.gz", action=thread.start)
    extract(direct)
    thread.join()
    assert "writes here" in refusals[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metadata.json", r"metadata\.json: another process has written it"),
        ("shard_0002.pkl.gz", r"shard_0002\.pkl\.gz: holds other bytes"),
    ],
    ids=["manifest", "shard"],
)
def test_what_a_stranger_wrote_is_not_written_over(direct, name: str, message: str, gcs: FakeGcs) -> None:
    gcs.faults.plan("call", "insert", "shard_0002.pkl.gz", action=lambda: gcs.put(BUCKET, PREFIX + name, b"{}"))
    with pytest.raises(StorageError, match=message):
        extract(direct)
    assert gcs.contents(BUCKET, PREFIX)[name] == b"{}"


@pytest.mark.whole
def test_another_run_and_objects_of_nobody_are_refused(direct, gcs: FakeGcs) -> None:
    gcs.put(BUCKET, "strange/shard_0001.pkl.gz", b"precious")
    with pytest.raises(StorageError, match=r"holds 1 objects .* no metadata\.json.* --output_dir"):
        extract(changed(direct, output_dir=f"gs://{BUCKET}/strange"))
    extract(direct)
    before = gcs.contents(BUCKET)
    with pytest.raises(RunMismatchError, match=f"{URL} holds another run's output; give another --output_dir"):
        extract(changed(direct, random_seed=7))
    with pytest.raises(RunMismatchError, match="no_checkpointing"):
        extract(changed(direct, checkpointing=False))
    assert gcs.contents(BUCKET) == before


@pytest.mark.whole
def test_committed_shards_that_have_gone_are_missed(direct, gcs: FakeGcs) -> None:
    extract(direct)
    whole = gcs.contents(BUCKET, PREFIX)
    del gcs.state.objects[BUCKET][PREFIX + "shard_0002.pkl.gz"]
    with pytest.raises(DamageError, match=rf"{URL}/shard_0002.pkl.gz: is gone.* --output_dir"):
        extract(direct)
    gcs.put(BUCKET, PREFIX + "shard_0002.pkl.gz", b"other")
    with pytest.raises(DamageError, match=r"shard_0002.pkl.gz: .* is not what metadata"):
        extract(direct)
    gcs.put(BUCKET, PREFIX + "shard_0002.pkl.gz", bytes(whole["shard_0002.pkl.gz"]))
    gcs.put(BUCKET, PREFIX + "metadata.json", b"")
    del gcs.state.objects[BUCKET][PREFIX + "metadata.json"]
    with pytest.raises(StorageError, match=r"knows of \d+ shards"):
        extract(direct)


@pytest.mark.whole
def test_what_is_left_over_of_a_longer_start_is_deleted(direct, gcs: FakeGcs) -> None:
    gcs.faults.plan("refuse", "insert", "shard_0001.pkl.gz", times=10_000, status=403)
    with pytest.raises(AccessError):
        extract(direct)
    gcs.faults.planned.clear()
    for name in (
        "shard_0009.pkl.gz",
        "statistics/shard_0009.safetensors",
        "shard_0009.notes",
        "tpu_1/shard_0009.pkl.gz",
    ):
        gcs.put(BUCKET, PREFIX + name, b"of an earlier start")
    summary = extract(changed(direct, max_tokens_total=1500))
    assert summary.manifest.stopped_at == 1500
    left = [name for name in gcs.contents(BUCKET, PREFIX) if "shard_0009" in name]
    assert sorted(left) == ["shard_0009.notes", "tpu_1/shard_0009.pkl.gz"]
    for name in left:
        del gcs.state.objects[BUCKET][PREFIX + name]
    with_sound_output(URL)


def with_sound_output(url: str) -> None:
    report = verify_folder(open_store(url))
    assert report.sound, report.describe()
    assert report.manifest.complete


@pytest.mark.whole
def test_when_tries_run_out_the_run_stops_and_the_next_one_goes_on(direct, expected, gcs: FakeGcs) -> None:
    impatient = changed(direct, upload=UploadConfig(upload_retry_seconds=0.1))
    gcs.faults.plan("refuse", "insert", "shard_0002.pkl.gz", times=10_000)
    with pytest.raises(StorageError, match=r"shard_0002\.pkl\.gz: failed \d+ times"):
        extract(impatient)
    assert len(shards.described(gcs.contents(BUCKET, PREFIX))["shards"]) == 1
    gcs.faults.planned.clear()
    extract(impatient)
    assert in_bucket(gcs) == expected


@pytest.mark.parametrize(("bucket", "error"), [("absent", UsageError), ("locked", AccessError)])
def test_a_bucket_that_is_missing_or_forbidden_stops_the_run_before_it_begins(direct, gcs, bucket, error) -> None:
    gcs.state.objects["locked"] = {}
    gcs.state.forbidden.add("locked")
    with pytest.raises(error, match=bucket):
        extract(changed(direct, output_dir=f"gs://{bucket}/run"))


@pytest.mark.whole
def test_metrics_land_beside_the_shards_each_start_in_its_own_object(direct, gcs: FakeGcs) -> None:
    extract(direct)
    extract(direct)
    found = [data for name, data in gcs.contents(BUCKET, PREFIX).items() if name.startswith("metrics/")]
    assert len(found) == 2
    assert json.loads(found[0].splitlines()[-1])["samples"] > 0


@pytest.mark.whole
def test_s3_will_do_as_well(direct, expected, s3: FakeS3, tmp_path: Path) -> None:
    there = changed(direct, output_dir=f"s3://{BUCKET}/some/run")
    extract(changed(there, max_tokens_total=2500))
    extract(there)
    store = open_store(f"s3://{BUCKET}/some/run")
    found = comparable({info.name: store.read(info.name).data for info in store.list()})
    head, other = json.loads(found.pop("metadata.json")), json.loads(expected.pop("metadata.json"))
    for manifest in (head, other):  # a limit is said in the settings, which the first start writes
        manifest["config"].pop("max_tokens_total")
    assert head == other
    assert {name: data for name, data in found.items() if "shard_" in name}.keys() == {
        name for name in expected if "shard_" in name
    }
    with_sound_output(f"s3://{BUCKET}/some/run")


@pytest.mark.whole
def test_every_command_that_reads_output_takes_the_url(
    direct: ExtractConfig, gcs: FakeGcs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {name: getattr(direct, name) for name in ("predictions_per_task", "row_length", "batch_size")}
    dataset = layertap.extract(
        dataset_path=direct.dataset_path, model_path=direct.model_path, output_dir=URL, format="safetensors", **settings
    )
    assert dataset[0].activation(layer=2).shape[0] == len(dataset[0].token_ids)
    assert len(list(dataset.batches(64, layers=[2]))) > 0
    for command in (
        ("verify", URL),
        ("stats", URL),
        ("inspect", URL),
        ("view", URL, "--out", str(tmp_path / "page.html")),
        ("export", URL, str(tmp_path / "copy"), "--to", "memmap"),
    ):
        assert main(list(command)) == 0, capsys.readouterr().err
    assert "complete" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size > 1000
