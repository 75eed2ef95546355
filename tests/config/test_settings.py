"""Settings refuse contradictions before anything is read, and say which flags are wrong."""

from pathlib import Path
from typing import Any

import pytest

from layertap.config.extract import ExtractConfig, HostsConfig
from layertap.config.fleet import CreateShardsConfig, StreamsConfig
from layertap.config.sharded import ShardedConfig
from layertap.config.upload import UploadConfig
from layertap.errors import UsageError

SHARDED = {"sharded_dataset_dir": "x"}
LOCAL = SHARDED | {"engine": "local", "num_workers": 1}
RAY = LOCAL | {"engine": "ray"}
STREAMS = {"dataset_path": "x", "num_streams": 2}
SHARDS = {"dataset_path": "x", "output": "y", "num_shards": 2}
OF_SHARDS = {"sharded": ShardedConfig(**SHARDED)}

REFUSED: tuple[tuple[type, dict[str, Any], str], ...] = (
    (UploadConfig, {"upload_to_gcs": True}, "--upload_to_gcs needs --gcs_bucket"),
    (UploadConfig, {"gcs_prefix": "acts"}, "give --gcs_bucket too"),
    (UploadConfig, {"gcs_bucket": "gs://b"}, "the bucket's name alone"),
    (UploadConfig, {"gcs_bucket": "b/acts"}, "the bucket's name alone"),
    (UploadConfig, {"gcs_bucket": ""}, "the bucket's name alone"),
    (UploadConfig, {"gcs_bucket": "b", "gcs_prefix": "gs://b/acts"}, "give a folder in the bucket"),
    (UploadConfig, {"gcs_bucket": "b", "upload_to": "s3://b"}, "name two places"),
    (UploadConfig, {"upload_to": ""}, "--upload_to is empty"),
    (UploadConfig, {"delete_local_after_upload": True}, "needs a place to upload to"),
    (UploadConfig, {"gcs_bucket": "b", "uploads_at_once": 0}, "--uploads_at_once must be at least 1"),
    (UploadConfig, {"gcs_bucket": "b", "upload_retry_seconds": -1}, "--upload_retry_seconds must not be negative"),
    (StreamsConfig, STREAMS | {"num_streams": 0}, "--num_streams must be 1 to 512"),
    (StreamsConfig, STREAMS | {"output_dir": "gs://bucket/streams"}, "is a URL"),
    (StreamsConfig, STREAMS | {"output_dir": "."}, "give the name of a folder"),
    (StreamsConfig, STREAMS | {"dataset_name": "other"}, "give one of --dataset_path and --dataset_name"),
    (StreamsConfig, STREAMS | {"dataset_path": None}, "give one of --dataset_path and --dataset_name"),
    (StreamsConfig, STREAMS | {"dataset_split": "test"}, "--dataset_split needs --dataset_name"),
    (StreamsConfig, STREAMS | {"column_name": "x", "dataset_format": "barc"}, "--dataset_format barc has none"),
    (StreamsConfig, STREAMS | {"anonymous": True}, "--anonymous: needs a --dataset_path at gs:// or s3://"),
    (StreamsConfig, STREAMS | {"billing_project": "p"}, "--billing_project p: needs a --dataset_path at gs://"),
    (ExtractConfig, {"dataset_path": "gs://b/x", "anonymous": True, "billing_project": "p"}, "give one of --anonymous"),
    (ExtractConfig, {"dataset_name": "x", "dataset_path": "y"}, "give one of --dataset_path and --dataset_name"),
    (ExtractConfig, {"dataset_name": "x", **OF_SHARDS}, "--dataset_name and --sharded_dataset_dir"),
    (ExtractConfig, {"dataset_path": "x", "storage_dtype": "int8"}, "int8 works only with --format safetensors"),
    (ExtractConfig, {"column_name": "x", **OF_SHARDS}, "--column_name does not work with --sharded_dataset_dir"),
    (
        StreamsConfig,
        {"dataset_name": "x", "num_streams": 2, "dataset_format": "barc"},
        "--dataset_format describes files",
    ),
    (CreateShardsConfig, SHARDS | {"num_shards": None}, "give one of --num_shards and --tasks_per_shard"),
    (CreateShardsConfig, SHARDS | {"tasks_per_shard": 3}, "give one of --num_shards and --tasks_per_shard"),
    (ShardedConfig, {"use_sharded_dataset": True}, "--use_sharded_dataset needs --sharded_dataset_dir"),
    (ShardedConfig, {"max_shards": 1}, "--max_shards needs --sharded_dataset_dir"),
    (ShardedConfig, SHARDED | {"preferred_shard_id": -1}, "shards are counted from 0"),
    (ShardedConfig, {"engine": "local", "num_workers": 2}, "--engine local needs --sharded_dataset_dir"),
    (ShardedConfig, SHARDED | {"engine": "local"}, "--engine local needs --num_workers"),
    (ShardedConfig, SHARDED | {"num_workers": 2}, "--num_workers needs an --engine"),
    (ShardedConfig, LOCAL | {"num_workers": 0}, "--num_workers must be at least 1"),
    (ShardedConfig, SHARDED | {"ray_address": "auto"}, "--ray_address needs --engine ray"),
    (ShardedConfig, RAY | {"ray_address": " "}, "give auto, or the HOST:PORT"),
    (ShardedConfig, RAY | {"ray_address": "head:70000"}, "give auto, or the HOST:PORT"),
    (ShardedConfig, RAY | {"ray_address": "ray://head:10001"}, "give auto, or the HOST:PORT"),
    (ShardedConfig, RAY | {"resources_per_worker": "TPU=4"}, "--resources_per_worker TPU=4: is not JSON"),
    (ShardedConfig, RAY | {"resources_per_worker": "[4]"}, "give names with amounts above 0"),
    (ShardedConfig, RAY | {"resources_per_worker": '{"TPU": 0}'}, "give names with amounts above 0"),
    (ShardedConfig, SHARDED | {"lease_seconds": 0.0}, "--lease_seconds must be at least 1"),
    (
        ExtractConfig,
        {"dataset_path": "x", **OF_SHARDS},
        "give one of --dataset_path, --dataset_name and --sharded_dataset_dir",
    ),
    (ExtractConfig, {}, "give --dataset_path, or --dataset_name, or --sharded_dataset_dir"),
    (ExtractConfig, {"max_tasks": 2, **OF_SHARDS}, "--max_tasks does not work with --sharded_dataset_dir"),
    (ExtractConfig, {"total_machines": 2, **OF_SHARDS}, "--total_machines does not work with --sharded_dataset_dir"),
    (
        ExtractConfig,
        {"sharded": ShardedConfig(**LOCAL), "hosts": HostsConfig(multihost=True)},
        "--engine local does not work with --multihost",
    ),
)


@pytest.mark.parametrize(("kind", "flags", "message"), REFUSED, ids=[f"{it[0].__name__}: {it[2]}" for it in REFUSED])
def test_contradictions_are_refused(kind: type, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**flags)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upload": UploadConfig(gcs_bucket="b")}, "without a copy elsewhere: leave out --gcs_bucket"),
        ({"upload": UploadConfig(upload_to="copy")}, "without a copy elsewhere"),
        ({"checkpoint_dir": "here"}, "leave out --checkpoint_dir here"),
        ({"output_dir": "gs://"}, "gs://: is no URL of a place"),
        ({"output_dir": "://a"}, "is no URL of a place"),
    ],
)
def test_what_belongs_to_a_folder_does_not_go_with_a_url(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExtractConfig(**{"dataset_path": "x", "output_dir": "gs://bucket/a"} | settings)


def test_a_url_as_output_is_no_folder() -> None:
    config = ExtractConfig(dataset_path="x", output_dir="s3://bucket/a/")
    assert (config.output_url, config.output_place) == ("s3://bucket/a", "s3://bucket/a")
    assert config.output_below("tpu_0") == "s3://bucket/a/tpu_0"
    assert ExtractConfig(dataset_path="x", output_dir="a").output_below("tpu_0") == "a/tpu_0"


@pytest.mark.parametrize("place", ["out", "out/copy", "."])
def test_a_folder_is_not_copied_into_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="one lies in the other"):
        ExtractConfig(dataset_path="x", output_dir="out", upload=UploadConfig(upload_to=place))


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"upload_to_gcs": True, "gcs_bucket": "b"}, "gs://b/activations/tpu_3"),
        ({"gcs_bucket": "b"}, "gs://b/activations/tpu_3"),  # as the multi-host example has it
        ({"gcs_bucket": "b", "gcs_prefix": "/run 7/acts/"}, "gs://b/run 7/acts/tpu_3"),
        ({"gcs_bucket": "b", "gcs_prefix": ""}, "gs://b/tpu_3"),
        ({"upload_to": "s3://b/acts/"}, "s3://b/acts/tpu_3"),
        ({"upload_to": "/mnt/share"}, "/mnt/share/tpu_3"),
    ],
)
def test_where_a_worker_s_output_goes(settings: dict[str, Any], url: str | None) -> None:
    assert UploadConfig(**settings).url(3) == url


@pytest.mark.parametrize(
    ("resources", "needs"),
    [
        (None, {"CPU": 1}),
        ('{"TPU": 4}', {"CPU": 1, "TPU": 4}),
        ('{"CPU": 0.5, "GPU": 1}', {"CPU": 0.5, "GPU": 1}),
    ],
)
def test_what_a_worker_needs_from_ray(resources: str | None, needs: dict[str, float]) -> None:
    assert ShardedConfig(**RAY, resources_per_worker=resources).worker_resources == needs
