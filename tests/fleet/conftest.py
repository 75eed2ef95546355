from pathlib import Path

import pytest

from layertap.config import ExtractConfig


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
