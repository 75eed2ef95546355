"""What every contender works on: the checkpoint, the prompts, Layertap's own run, and two
yardsticks.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.config import ContenderConfig
from layertap.config.extract import ExtractConfig
from layertap.core.records import BadTask

if TYPE_CHECKING:  # it brings JAX
    from layertap.pipeline.progress import RunSummary

BATCH = 4
"""Prompts in a batch of the script that most would write."""

_DISK_BYTES = 2 << 30

Figures = dict[str, float]


def model_folder(config: ContenderConfig) -> Path:
    """Return the folder of the checkpoint."""
    return Path(config.output_dir) / f"model-{config.size}"


def prompt_ids(config: ContenderConfig) -> list[np.ndarray]:
    """Return the token ids of all prompts, as Layertap makes them."""
    return arc_prompts(str(config.dataset_path), model_folder(config), config.tasks)


def arc_prompts(dataset_path: str, tokenizer: Path, tasks: int | None) -> list[np.ndarray]:
    """The token ids of one prompt for each test input of these tasks, with the default wording."""
    from layertap.dataset import read_records
    from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder

    defaults = ExtractConfig(dataset_path=dataset_path)
    maker = PromptMaker(
        tokenizer=load_tokenizer(tokenizer),
        template=load_template(defaults.prompt_version, None),
        encoder=parse_grid_encoder(defaults.grid_encoder),
        predictions_per_task=1,
        include_answer=False,
        seed=defaults.random_seed,
    )
    records = enumerate(read_records(dataset_path, max_tasks=tasks))
    read = [(number, record) for number, record in records if not isinstance(record, BadTask)]
    return [sample.token_ids for sample in maker.make(read)]


def baseline_ids(config: ContenderConfig) -> list[np.ndarray]:
    """Return the token ids for transformers: whole batches, from all parts of the dataset."""
    prompts = prompt_ids(config)
    batches = [prompts[first : first + BATCH] for first in range(0, len(prompts), BATCH)]
    wanted = min(config.baseline_batches or len(batches), len(batches))
    middles = ((2 * number + 1) * len(batches) // (2 * wanted) for number in range(wanted))
    return [ids for middle in middles for ids in batches[middle]]


def extraction(config: ContenderConfig) -> ExtractConfig:
    """Return the settings of the run that is measured, into a folder of this process."""
    return ExtractConfig(
        dataset_path=str(config.dataset_path),
        max_tasks=config.tasks,
        model_path=str(model_folder(config)),
        predictions_per_task=1,
        compute_dtype=config.dtype,
        layers_to_extract=config.layers,
        activation_type=config.activation_type,
        format=config.format,
        share_prefix=config.prefix == "shared",
        shard_size_gb=config.shard_size_gb,
        output_dir=str(Path(config.output_dir) / f"activations-{os.getpid()}"),
        checkpointing=False,
    )


def run_figures(summary: "RunSummary") -> Figures:
    """Return the figures of a run, without loading."""
    figures: Figures = {f"waited_{stage}": seconds for stage, seconds in summary.waited.items()}
    return figures | {
        "tokens": summary.tokens,
        "computed_tokens": summary.computed_tokens,
        "shared_tokens": summary.shared_tokens,
        "seconds": summary.seconds - summary.waited["loading"],
    }


def disk_mb_per_second(folder: Path) -> float:
    """Sequential writing, synced, in MB (1e6 bytes)."""
    block = np.random.default_rng(0).bytes(1 << 24)
    path = folder / "disk-speed"

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    try:
        return _DISK_BYTES / seconds_of(write) / 1e6
    finally:
        path.unlink(missing_ok=True)


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
