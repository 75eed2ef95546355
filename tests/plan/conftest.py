from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import small_run

from layertap.config.plan import PlanConfig


@pytest.fixture
def planned(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> Callable[..., PlanConfig]:
    """A function that returns the settings of a small plan, with some changes."""
    run = vars(small_run(few_tasks, tiny_model, tmp_path))

    def config(**changes: Any) -> PlanConfig:
        dataset = None if "tokens" in changes else run["dataset_path"]
        return PlanConfig(**(run | {"dataset_path": dataset, "accelerator": "a100x1"} | changes))

    return config
