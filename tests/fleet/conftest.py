"""Sharded datasets in a folder and in a bucket, and settings of small runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gcs import FakeGcs

from layertap.config import ExtractConfig
from layertap.store.objects import ObjectStore, open_store
from layertap.store.retry import Retry


@pytest.fixture(params=["folder", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a sharded dataset may lie."""
    if request.param == "folder":
        return str(tmp_path / "dataset")
    request.getfixturevalue("gcs")
    return "gs://bucket/dataset"


@pytest.fixture
def store(place: str) -> Iterator[ObjectStore]:
    opened = open_store(place, Retry(20.0, first_pause=0.001, longest_pause=0.01))
    yield opened
    opened.close()


@pytest.fixture
def bucket(gcs: FakeGcs) -> Iterator[ObjectStore]:
    """A bucket whose faults can be planned."""
    opened = open_store("gs://bucket/dataset", Retry(20.0, first_pause=0.001, longest_pause=0.01))
    yield opened
    opened.close()


@pytest.fixture
def config(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return ExtractConfig(
        dataset_path=str(demo_tasks),
        model_path=str(tiny_model),
        predictions_per_task=2,
        prompt_version="output-from-examples-v1",
        row_length=1024,
        batch_size=2,
        max_seq_length=4096,
        window_samples=10,
        layers_to_extract=(1, 3),
        output_dir=str(tmp_path / "out"),
        checkpoint_dir=str(tmp_path / "checkpoints"),
        shard_size_gb=0.001,
    )
