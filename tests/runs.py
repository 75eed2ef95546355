"""Small runs in this process."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from layertap.config import ExtractConfig
from layertap.extract.run import extract


def small_run(dataset: Path, model: Path, folder: Path, **changes: Any) -> ExtractConfig:
    """Settings of a run of some seconds, with windows and shards so small that it has several of each."""
    settings: dict[str, Any] = {
        "predictions_per_task": 2,
        "prompt_version": "output-from-examples-v1",
        "row_length": 1024,
        "batch_size": 2,
        "max_seq_length": 4096,
        "window_samples": 10,
        "layers_to_extract": (1, 3),
        "output_dir": str(folder / "out"),
        "checkpoint_dir": str(folder / "checkpoints"),
        "shard_size_gb": 0.001,
    }
    return ExtractConfig(dataset_path=str(dataset), model_path=str(model), **(settings | changes))


def changed(config: ExtractConfig, **changes: Any) -> ExtractConfig:
    return dataclasses.replace(config, **changes)


def out(config: ExtractConfig) -> Path:
    return Path(config.output_dir)


def manifest(config: ExtractConfig) -> dict[str, Any]:
    return json.loads((out(config) / "metadata.json").read_text())


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def extract_some(config: ExtractConfig, count: int) -> dict[str, Any]:
    """Run, and be interrupted as the commit after `count` shards begins."""
    from layertap.store.writer import ShardWriter

    commit = ShardWriter.commit

    def interrupted(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        if len(self.manifest.shards) == count:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    path = out(config) / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {"shards": []}
