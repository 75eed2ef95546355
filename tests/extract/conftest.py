from pathlib import Path

import pytest
from runs import small_run

from layertap.config import ExtractConfig


@pytest.fixture
def config(tiny_model: Path, demo_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(demo_tasks, tiny_model, tmp_path)
