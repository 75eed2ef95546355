from pathlib import Path

import pytest
from runs import small_run

from layertap.config.extract import ExtractConfig


@pytest.fixture
def config(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(few_tasks, tiny_model, tmp_path)
