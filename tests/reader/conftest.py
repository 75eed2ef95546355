"""Output folders to read, in both formats and both kinds of places."""

from collections.abc import Callable
from pathlib import Path

import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs

FORMATS = ("pickle", "safetensors")


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    """The name of a format."""
    return request.param


@pytest.fixture(params=("folder", "bucket"))
def publish(request: pytest.FixtureRequest, gcs: FakeGcs) -> Callable[[Path], str]:
    """A function that returns a path or a URL with the content of an output folder."""

    def to_bucket(folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                gcs.put(BUCKET, f"activations/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"gs://{BUCKET}/activations"

    return str if request.param == "folder" else to_bucket


@pytest.fixture
def folder(tmp_path: Path, form: str) -> Path:
    """Three shards of two samples, with two layers and one site."""
    outputs.write(tmp_path / "out", outputs.three_shards(), outputs.shard_format(name=form))
    return tmp_path / "out"
