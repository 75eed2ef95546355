"""Fixtures: clouds on loopback, each with one empty bucket; the environment points to them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3

BUCKET = "bucket"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    """Google Cloud Storage on loopback, with one empty bucket."""
    with FakeGcs(BUCKET) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    """S3 on loopback, with one empty bucket."""
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with FakeS3() as server:
        for name, value in {**settings, "AWS_ENDPOINT_URL": server.endpoint, "AWS_CONFIG_FILE": os.devnull}.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        server.make_bucket(BUCKET)
        yield server
