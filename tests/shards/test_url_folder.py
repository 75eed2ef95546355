"""`verify` and `stats` of output behind a URL."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3

from layertap.check.verify import VerifyReport, verify_folder
from layertap.cli import main
from layertap.errors import UsageError
from layertap.objects import open_store
from layertap.objects.content import FileContent
from layertap.objects.files import file_crc32c
from layertap.objects.retry import Retry

SITES = ("residual", "mlp")
URL = f"gs://{BUCKET}/run/tpu_0"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    outputs.write(tmp_path / "out", outputs.three_shards(SITES), outputs.shard_format(SITES))
    return tmp_path / "out"


@pytest.fixture
def uploaded(output: Path, gcs: FakeGcs) -> FakeGcs:
    """The same output, in the bucket."""
    for path in output.rglob("*"):
        if path.is_file():
            gcs.put(BUCKET, f"run/tpu_0/{path.relative_to(output).as_posix()}", path.read_bytes())
    return gcs


def check(url: str = URL) -> VerifyReport:
    with closing(open_store(url, Retry(20.0, first_pause=0.001))) as folder:
        return verify_folder(folder)


def names(gcs: FakeGcs) -> Iterator[str]:
    return (name for name in gcs.contents(BUCKET, "run/tpu_0/") if "shard_" in name)


def test_sound_output_in_a_bucket_is_found_sound_and_every_object_is_read_once(uploaded: FakeGcs) -> None:
    report = check()
    assert report.describe() == f"{URL}: complete; 3 shards, 6 samples, 23 tokens, every file read back and checked"
    assert uploaded.faults.count("list") == 1
    assert uploaded.faults.count("media") == len(list(names(uploaded))) + 2  # the manifest's head and part
    assert uploaded.faults.count("stat") == 2  # of the manifest


def test_reading_goes_by_ranges(uploaded: FakeGcs, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.setattr("layertap.objects.remote._RANGE_BYTES", 100)
    assert check().sound
    sizes = [(output / name).stat().st_size for name in names(uploaded)]
    assert uploaded.faults.count("media", "shard_0001.pkl.gz") > 4
    assert uploaded.faults.count("media") >= sum(size // 100 for size in sizes)


def test_faults_on_the_way_are_no_damage(uploaded: FakeGcs) -> None:
    uploaded.faults.storm = 0.4
    assert check().sound


def test_damage_in_a_bucket_is_named(uploaded: FakeGcs, output: Path) -> None:
    objects = uploaded.state.objects[BUCKET]
    data = objects["run/tpu_0/mlp/shard_0002.pkl.gz"].data
    uploaded.put(BUCKET, "run/tpu_0/mlp/shard_0002.pkl.gz", data[:50] + bytes([data[50] ^ 1]) + data[51:])
    uploaded.put(BUCKET, "run/tpu_0/residual/shard_0001.pkl.gz", b"short")
    longer = objects["run/tpu_0/residual/shard_0002.pkl.gz"].data + b"more"
    uploaded.put(BUCKET, "run/tpu_0/residual/shard_0002.pkl.gz", longer)
    del objects["run/tpu_0/mlp/shard_0003.pkl.gz"]
    uploaded.put(BUCKET, "run/tpu_0/mlp/shard_0009.pkl.gz", b"extra")
    findings = "\n".join(check().findings)
    assert "mlp/shard_0002.pkl.gz: has CRC-32C" in findings
    assert "residual/shard_0001.pkl.gz: has 5 bytes" in findings
    assert f"residual/shard_0002.pkl.gz: has {len(longer)} bytes, should have {len(longer) - 4}" in findings
    assert "mlp/shard_0003.pkl.gz: missing" in findings
    assert "mlp/shard_0009.pkl.gz: not named by metadata.json" in findings


def test_shards_that_are_ahead_of_an_unfinished_run_s_manifest_are_no_damage(uploaded: FakeGcs, output: Path) -> None:
    outputs.edit_manifest(output, lambda document: document.update(complete=False, shards=document["shards"][:1]))
    uploaded.put(BUCKET, "run/tpu_0/metadata.json", (output / "metadata.json").read_bytes())
    assert check().sound


def test_a_url_without_output_is_refused(gcs: FakeGcs) -> None:
    with pytest.raises(UsageError, match=r"gs://bucket/run/tpu_0/metadata\.json: no such file"):
        check()


def test_the_commands_take_urls(uploaded: FakeGcs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", URL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    uploaded.put(BUCKET, "run/tpu_0/mlp/shard_0001.pkl.gz", b"")
    assert main(["verify", URL]) == 1
    assert main(["stats", URL]) == 0
    assert main(["verify", "gs://absent/run"]) == 2
    assert "no such bucket" in capsys.readouterr().err


def test_s3_will_do_as_well(s3: FakeS3, output: Path) -> None:
    store = open_store(f"s3://{BUCKET}/run/tpu_0")
    for path in output.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(output).as_posix(), FileContent(path, file_crc32c(path)))
    assert check(f"s3://{BUCKET}/run/tpu_0").sound
