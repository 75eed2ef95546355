"""Small runs in this process, and the flags of the same runs in separate processes.

A run that only prepares a test is computed once: `finished` and `extract_some` keep what the first
one wrote, and return copies of it. A test of the run itself calls `extract`.
"""

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shards

from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.pipeline.run import extract

_FOLDERS = ("output_dir", "checkpoint_dir")


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


def small_flags(dataset: Path | None, model: Path, **changes: Any) -> list[str]:
    """The flags of a quick run of all layers; None leaves a flag out."""
    settings = {"predictions_per_task": 2, "row_length": 1024, "batch_size": 2, "window_samples": 16}
    named = {"dataset_path": dataset, "model_path": model} | settings | changes
    given = {name: value for name, value in named.items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


Activations = dict[tuple[int, int], np.ndarray]
"""(layer, sample_idx) -> activations."""


def activations(folder: Path) -> Activations:
    """Return what a run of one site and all layers of the tiny model left in its output folder."""
    layers = {layer: shards.samples(folder, layer) for layer in range(4)}
    return {(layer, index): entry["activation"] for layer, found in layers.items() for index, entry in found.items()}


def require_close(found: Activations, expected: Activations) -> None:
    """Require the same samples, and the same activations up to the order of sums in float32."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=str(key))


def changed(config: ExtractConfig, **changes: Any) -> ExtractConfig:
    return dataclasses.replace(config, **changes)


def out(config: ExtractConfig) -> Path:
    return Path(config.output_dir)


def manifest(config: ExtractConfig) -> dict[str, Any]:
    return shards.manifest(out(config))


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def finished(config: ExtractConfig) -> None:
    """Leave the output of `extract(config)` in folders that are empty so far."""
    _hand_out(config, None)


def extract_some(config: ExtractConfig, count: int) -> dict[str, Any]:
    """Leave what an interruption at the beginning of the commit after `count` shards leaves."""
    if config.upload == UploadConfig() and not out(config).exists():
        _hand_out(config, count)
    else:
        _interrupt(config, count)
    return manifest(config) if (out(config) / "metadata.json").exists() else {"shards": []}


def _hand_out(config: ExtractConfig, count: int | None) -> None:
    template = _template(changed(config, **dict.fromkeys(_FOLDERS, "")), count)
    for name in _FOLDERS:
        folder = Path(getattr(config, name))
        shutil.copytree(template / name, folder, dirs_exist_ok=True)
        for path in folder.glob("*.json"):
            text = path.read_text()
            for other in _FOLDERS:
                text = text.replace(str(template / other), getattr(config, other))
            path.write_text(text)


@cache
def _template(config: ExtractConfig, count: int | None) -> Path:
    """A folder with the output and the checkpoints of that run."""
    folder = Path(tempfile.mkdtemp(prefix="layertap-run-"))
    atexit.register(shutil.rmtree, folder)
    for name in _FOLDERS:
        (folder / name).mkdir()
    here = changed(config, **{name: str(folder / name) for name in _FOLDERS})
    if count is None:
        extract(here)
    else:
        _interrupt(here, count)
    return folder


def _interrupt(config: ExtractConfig, count: int) -> None:
    from layertap.shards.writer import ShardWriter

    commit = ShardWriter.commit
    begun = 0

    def interrupted(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > count:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
