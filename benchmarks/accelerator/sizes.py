"""What is run on a card, and the tiny stand-ins that a rehearsal on a CPU runs in its place."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.config import ContenderConfig, Device
from benchmarks.workload import prompt_ids
from layertap.model.config import DecoderConfig, published_config
from layertap.pipeline.packing import Step, batch_arrays, pack_window


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    row_length: int
    rows: int
    """Rows in a step."""
    steps: int
    """Steps of a forward pass that is timed."""
    tasks: int
    """Tasks whose prompts fill them, and which a whole run of one layer extracts."""
    written: int
    """Tasks of a whole run that writes all layers."""
    checkpoint: str
    """The shape that is written to disk, for parity, whole runs and the stream."""
    parity_tokens: int
    longest: int
    """Prompts longer than this are cut."""
    deep_layers: tuple[int, ...]
    """Those that a run of the large shape stores; it runs up to the last."""
    trained: "Trained"
    repeats: int = 3


@dataclass(frozen=True)
class Trained:
    """What an autoencoder is trained on, and how wide it is."""

    predictions: int
    """Prompts of each test input."""
    batch: int
    pool: int
    """Tokens that are mixed."""
    features: int


SIZES: dict[Device, Sizes] = {
    "gpu": Sizes(
        row_length=4096,
        rows=4,
        steps=10,
        tasks=480,
        written=120,
        checkpoint="0.5b",
        parity_tokens=6000,
        longest=4096,
        deep_layers=(7, 14, 21),
        trained=Trained(predictions=4, batch=4096, pool=1 << 17, features=8192),
    ),
    "cpu": Sizes(
        row_length=512,
        rows=2,
        steps=2,
        tasks=4,
        written=2,
        checkpoint="tiny",
        parity_tokens=700,
        longest=300,
        deep_layers=(0, 1, 2),
        trained=Trained(predictions=1, batch=256, pool=1024, features=64),
        repeats=1,
    ),
}

TINY_LAYERS = 2
_SMALL_VOCABULARY = 8192


def sizes_of(config: PartConfig) -> Sizes:
    """Those of the platform."""
    return SIZES[config.platform]


def speed_shapes(config: PartConfig) -> dict[str, DecoderConfig]:
    """The models whose speed is measured, on weights that are drawn on the device."""
    shapes = {size: published_config(size) for size in ("0.5b", "7b")}
    if config.platform == "gpu":
        return shapes
    return {size: _tiny(shape) for size, shape in shapes.items()}


def _tiny(shape: DecoderConfig) -> DecoderConfig:
    """Two layers, one key-value head with its group of two, of the same head size; every prompt's
    token is known.
    """
    return replace(
        shape,
        hidden_size=2 * shape.head_dim,
        intermediate_size=256,
        num_hidden_layers=TINY_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=_SMALL_VOCABULARY,
    )


def deep_shape(config: PartConfig) -> DecoderConfig:
    """The large shape down to the last layer that is stored, with a vocabulary that suits the
    demo's tokenizer: a step looks up tokens, and needs no output layer.
    """
    layers = sizes_of(config).deep_layers[-1] + 1
    return replace(speed_shapes(config)["7b"], num_hidden_layers=layers, vocab_size=_SMALL_VOCABULARY)


def contender(config: PartConfig) -> ContenderConfig:
    """Settings for what the rest of the benchmarks has: the checkpoint and the tasks in the work
    folder.
    """
    sizes = sizes_of(config)
    return ContenderConfig(
        device=config.platform,
        dataset_path=str(tasks_file(config)),
        tasks=sizes.tasks,
        size=sizes.checkpoint,
        output_dir=str(config.work),
        prefix=config.prefix,
    )


def tasks_file(config: PartConfig) -> Path:
    """Where the tasks lie."""
    return Path(str(config.work)) / "tasks.jsonl"


@cache
def prompts(config: PartConfig) -> list[np.ndarray]:
    """The tasks' prompts, none longer than a row."""
    return [ids[: sizes_of(config).longest] for ids in prompt_ids(contender(config))]


def full_steps(config: PartConfig) -> list[tuple[Step, list[np.ndarray]]]:
    """Packed steps of one shape, each with its prompts: what all that are compared compute."""
    sizes, given = sizes_of(config), prompts(config)
    packed = pack_window([len(ids) for ids in given], (sizes.row_length,), sizes.rows)
    whole = [step for step in packed if step.rows == sizes.rows][: sizes.steps]
    return [(step, [given[place.sample] for place in step.placements]) for step in whole]


def arrays(config: PartConfig, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and `seg_start` of a step."""
    return batch_arrays(step, prompts(config))
