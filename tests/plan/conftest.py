from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layertap.config.plan import PlanConfig


@pytest.fixture
def planned(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> Callable[..., PlanConfig]:
    """The settings of a small plan, changed."""

    def config(**changes: Any) -> PlanConfig:
        small = {
            "dataset_path": None if "tokens" in changes else str(few_tasks),
            "model_path": str(tiny_model),
            "predictions_per_task": 2,
            "row_length": 1024,
            "max_seq_length": 4096,
            "batch_size": 2,
            "window_samples": 10,
            "layers_to_extract": (1, 3),
            "output_dir": str(tmp_path / "out"),
            "checkpoint_dir": str(tmp_path / "checkpoints"),
            "shard_size_gb": 0.001,
        }
        return PlanConfig(**(small | changes))

    return config
