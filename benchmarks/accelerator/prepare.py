"""Checkpoints with random weights and tasks, made on the spot into the work folder.

The large shape would take a minute to draw. Its first layer is drawn, and the others are copies of
it in files of their own: other weights of the same kind would be as fast.
"""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
from safetensors.numpy import load_file, save_file

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import contender, deep_shape, sizes_of, tasks_file
from benchmarks.workload import model_folder, seconds_of
from layertap.demo.checkpoint import config_json, write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.model.config import DecoderConfig

DEEP = "deep"
"""What the large shape's checkpoint is called."""

_FIRST = "model.layers.0."


def cases(config: PartConfig) -> Cases:
    """Tasks first: they take a second."""
    return {
        "tasks": lambda: _tasks(config),
        "checkpoint": lambda: _checkpoint(config),
        "checkpoint of the large shape": lambda: _deep_checkpoint(config),
    }


def _tasks(config: PartConfig) -> Figures:
    count = sizes_of(config).tasks
    return {"tasks": count, "seconds": seconds_of(lambda: write_tasks(tasks_file(config), make_tasks(count)))}


def _checkpoint(config: PartConfig) -> Figures:
    folder, size = model_folder(contender(config)), sizes_of(config).checkpoint
    return _made(folder, size, seconds_of(lambda: write_checkpoint(folder, size)))


def _deep_checkpoint(config: PartConfig) -> Figures:
    folder, shape = model_folder(replace(contender(config), size=DEEP)), deep_shape(config)
    seconds = seconds_of(lambda: write_deep_checkpoint(folder, shape))
    return _made(folder, f"{shape.num_hidden_layers} layers of {shape.hidden_size}", seconds)


def _made(folder: Path, size: str, seconds: float) -> Figures:
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return {"size": size, "megabytes": megabytes, "seconds": seconds}


def write_deep_checkpoint(folder: Path, shape: DecoderConfig) -> None:
    """A checkpoint whose layers are all the same."""
    layers = shape.num_hidden_layers
    write_checkpoint(folder, shape, layers=1)
    whole = folder / "model.safetensors"
    first = {name: value for name, value in load_file(whole).items() if name.startswith(_FIRST)}
    for layer in range(1, layers):
        renamed = {name.replace(_FIRST, f"model.layers.{layer}."): value for name, value in first.items()}
        save_file(renamed, folder / _part_name(layer + 1, layers))
    whole.rename(folder / _part_name(1, layers))
    (folder / "config.json").write_text(json.dumps(config_json(shape, "bfloat16")))


def _part_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"
