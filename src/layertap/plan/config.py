"""The settings of `layertap plan`: the flags of the run that is being thought of, and a few of its own.

`PlanConfig` is an `ExtractConfig`, so the command to be planned can be taken as it stands, and no flag of the run can
be forgotten here. Without `--batch_size` the plan recommends one, where the run would take a cautious one.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config import ExtractConfig
from layertap.errors import UsageError


@dataclass(frozen=True)
class PlanConfig(ExtractConfig):
    """Say what a run would need, before it costs anything: tokens, bytes, memory, time and money."""

    model_path: Annotated[str, tyro.conf.arg(aliases=["--model"])] = "Qwen/Qwen2.5-0.5B"
    """A checkpoint folder, a Hub id, or a published size such as 7b. No weight is read."""

    accelerator: str = "cpu"
    """What it would run on: a TPU such as v5litepod-64, v4-32 or v6e-8, GPUs of one host such as h200x1, h100x8 or
    a100x1, or cpu: this machine, which is then measured for some seconds."""

    workers: int = 1
    """How many of these accelerators share the work evenly."""

    tokens: int | None = None
    """Plan for so many tokens of ARC prompts of the usual lengths, without a dataset."""

    tokenizer: str | None = None
    """A folder with the tokenizer, where --model is a size and a dataset is to be counted."""

    price_per_hour: float | None = None
    """What one accelerator, all its chips together, costs an hour."""

    price_per_gb_month: float | None = None
    """What storing 10^9 bytes costs a month."""

    disk_gb_per_second: float | None = None
    """What the disk of one host writes; None stands for the accelerator's usual one, on cpu for what is measured."""

    network_gb_per_second: float | None = None
    """What one host uploads, where --gcs_bucket or --upload_to is given; None stands for a cautious figure."""

    compiler: bool = True
    """Ask the TPU compiler (extra tpu) about memory; it takes a minute or more. Without, memory is estimated."""

    json: bool = False
    """Print the plan as JSON."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; raises UsageError."""
        super().__post_init__()
        for name in ("workers", "tokens", "price_per_hour", "price_per_gb_month"):
            if (value := getattr(self, name)) is not None and value < (1 if name in ("workers", "tokens") else 0):
                raise UsageError(f"--{name} must not be {value}")
        for name in ("disk_gb_per_second", "network_gb_per_second"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"--{name} must be more than 0, not {value}")

    def _require_one_dataset(self) -> None:
        if self.sharded.sharded_dataset_dir is not None:
            raise UsageError("to plan, give the dataset as it was before it was cut into shards, by --dataset_path")
        if (self.dataset_path is None) == (self.tokens is None):
            raise UsageError("give either --dataset_path, to count its tokens, or --tokens")
