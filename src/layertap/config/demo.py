"""The flags of `layertap demo` and of `python -m layertap.demo.checkpoint`.

As in `layertap.config.extract`: one field, one flag, one sentence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import Flag
from layertap.config.checks import require_counts

WeightDtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class DemoConfig:
    """Make a tiny model and ARC-style tasks, extract from them, and verify the output."""

    output_dir: Annotated[str, Flag(metavar="FOLDER")] = "./layertap-demo"
    """Where to write the model, the tasks and the activations."""

    num_tasks: int = 24
    """How many tasks to make."""

    seed: Annotated[int, Flag(metavar="SEED")] = 0
    """The seed of the weights and the tasks."""

    def __post_init__(self) -> None:
        """Refuse an empty demo; raises UsageError."""
        require_counts(self, "num_tasks")


@dataclass(frozen=True)
class CheckpointConfig:
    """Write a Qwen 2.5 checkpoint with random weights."""

    folder: Annotated[tyro.conf.Positional[Path], Flag(metavar="FOLDER")]
    """Where to write it; the folder must not hold a checkpoint yet."""

    size: Annotated[str, Flag(metavar="SIZE")] = "tiny"
    """tiny, 0.5b, 1.5b, 3b, 7b, 14b, 32b or 72b."""

    dtype: WeightDtype = "bfloat16"
    """How the weights are stored."""

    seed: Annotated[int, Flag(metavar="SEED")] = 0
    """The seed of the weights."""

    tokenizer: Annotated[Path | None, Flag(metavar="FOLDER", default="a small one, trained on the spot")] = None
    """A folder to copy the tokenizer from."""

    max_file_bytes: Annotated[int | None, Flag(metavar="BYTES", default="all in one file")] = None
    """Split weights that take more into several files."""

    layers: Annotated[int | None, Flag(default="as many as the size has")] = None
    """How many layers to write."""
