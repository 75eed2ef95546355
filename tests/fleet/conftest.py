"""Sharded datasets in a folder and in a bucket, and settings of small runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gcs import FakeGcs
from runs import small_run

from layertap.config.extract import ExtractConfig
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.retry import Retry


@pytest.fixture(params=["folder", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a sharded dataset: a folder, then a bucket."""
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
def config(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(few_tasks, tiny_model, tmp_path)
