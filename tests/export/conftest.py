"""Runs to export, in both formats and both kinds of places."""

from collections.abc import Callable
from pathlib import Path

import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs

SITES = ("residual", "mlp_in")


@pytest.fixture(params=("pickle", "safetensors"))
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three shards of two samples, with 8, 7 and 8 tokens; two layers and sites, in bfloat16."""
    outputs.write(
        tmp_path / "run", outputs.three_shards(SITES), outputs.shard_format(SITES, "bfloat16", name=request.param)
    )
    return tmp_path / "run"


@pytest.fixture(params=("folder", "bucket"))
def publish(request: pytest.FixtureRequest, gcs: FakeGcs) -> Callable[[Path], str]:
    """A function that returns a path or a URL with the content of an output folder."""

    def to_bucket(folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                gcs.put(BUCKET, f"run/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"gs://{BUCKET}/run"

    return str if request.param == "folder" else to_bucket
