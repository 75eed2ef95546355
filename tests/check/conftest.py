from pathlib import Path

import outputs
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound output folder of three shards and one site."""
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format())
    return tmp_path


@pytest.fixture
def two_sites(tmp_path: Path) -> Path:
    """A sound output folder of three shards and two sites."""
    sites = ("residual", "mlp")
    outputs.write(tmp_path, outputs.three_shards(sites), outputs.shard_format(sites))
    return tmp_path
