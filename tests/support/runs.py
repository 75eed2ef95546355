"""Small runs in this process.

A run that only sets the scene is computed once: `finished` and `extract_some` keep what the first of a kind wrote, and
hand out copies of it. A test whose own subject is the run calls `extract`.
"""

import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.extract.run import extract


def small_run(dataset: Path, model: Path, folder: Path, **changes: Any) -> ExtractConfig:
    """Settings of a quick run, with windows and shards so small that it has several of each."""
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


def finished(config: ExtractConfig) -> None:
    """Leave what `extract(config)` leaves in folders that are empty so far."""
    _hand_out(config, None)


def extract_some(config: ExtractConfig, count: int) -> dict[str, Any]:
    """Leave what a run leaves that is interrupted as the commit after `count` shards begins; the manifest of it."""
    if config.upload == UploadConfig() and not out(config).exists():
        _hand_out(config, count)
    else:
        _interrupt(config, count)
    path = out(config) / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {"shards": []}


def _hand_out(config: ExtractConfig, count: int | None) -> None:
    folders = {"output_dir": config.output_dir, "checkpoint_dir": config.checkpoint_dir}
    template = _template(dataclasses.replace(config, **dict.fromkeys(folders, "")), count)
    for name, folder in folders.items():
        shutil.copytree(template / name, folder, dirs_exist_ok=True)
        for path in Path(folder).glob("*.json"):
            text = path.read_text()
            for other, there in folders.items():
                text = text.replace(str(template / other), there)
            path.write_text(text)


@cache
def _template(config: ExtractConfig, count: int | None) -> Path:
    """A folder with the output and the checkpoints of that run."""
    folder = Path(tempfile.mkdtemp(prefix="layertap-run-"))
    atexit.register(shutil.rmtree, folder)
    for name in ("output_dir", "checkpoint_dir"):
        (folder / name).mkdir()
    here = changed(config, output_dir=str(folder / "output_dir"), checkpoint_dir=str(folder / "checkpoint_dir"))
    if count is None:
        extract(here)
    else:
        _interrupt(here, count)
    return folder


def _interrupt(config: ExtractConfig, count: int) -> None:
    from layertap.shards.writer import ShardWriter

    commit = ShardWriter.commit

    def interrupted(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        if len(self.manifest.shards) == count:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
