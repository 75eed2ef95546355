"""The settings of `layertap plan`: those of the run to estimate, and a few of its own.  You can
plan a command as you wrote it, because a plan takes every flag of a run. But a plan may also
describe a run that cannot be executed: its dataset may be only a number of tokens, its model only a
size. Without `--batch_size` the plan recommends one, whereas a run uses a cautious default.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from layertap.config.arguments import Flag
from layertap.config.checks import require
from layertap.config.extract import RunConfig
from layertap.core.selection import ALL


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    """Estimate what a run needs: tokens, bytes, memory, time and money."""

    dataset_path: Annotated[str | None, Flag(metavar="PATH", needed="required, or --tokens")] = None

    model_path: Annotated[str, tyro.conf.arg(aliases=["--model"]), Flag(metavar="MODEL")] = "Qwen/Qwen2.5-0.5B"
    """A model on the Hugging Face Hub, a folder with a checkpoint, or a published size such as 7b.
    No weights are read."""

    accelerator: Annotated[str | None, Flag("plan", "NAME", "none: no memory, time or cost")] = None
    """The hardware of the run: a TPU such as v5litepod-64, v4-32 or v6e-8, or the GPUs of one host,
    such as h200x1, h100x8 or a100x1. cpu is this machine, whose speed a plan does not know."""

    workers: Annotated[int, Flag("plan")] = 1
    """How many of these accelerators share the work evenly."""

    tokens: Annotated[int | None, Flag("plan", "TOKENS")] = None
    """Plan for this many tokens of ARC prompts of usual lengths, instead of a dataset."""

    tokenizer: Annotated[str | None, Flag("plan", "FOLDER")] = None
    """A folder with the tokenizer, if --model is a size. Needed to count a dataset. With --tokens
    it counts what all prompts begin with."""

    price_per_hour: Annotated[float | None, Flag("plan", "PRICE")] = None
    """What one accelerator with all its chips costs per hour."""

    price_per_gb_month: Annotated[float | None, Flag("plan", "PRICE")] = None
    """What it costs to store 10^9 bytes for a month."""

    disk_gb_per_second: Annotated[float | None, Flag("plan", "GB", "the usual one of the accelerator")] = None
    """How fast the disk of one host writes, where --output_dir is a folder."""

    network_gb_per_second: Annotated[float | None, Flag("plan", "GB", "a cautious figure")] = None
    """How fast one host uploads, to a URL as --output_dir, --gcs_bucket or --upload_to."""

    json: Annotated[bool, Flag("plan")] = False
    """Print the plan as JSON."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        super().__post_init__()
        for name, least in (("workers", 1), ("tokens", 1), ("price_per_hour", 0), ("price_per_gb_month", 0)):
            value = getattr(self, name)
            require(value is None or value >= least, f"--{name} must not be {value}")
        for name in ("disk_gb_per_second", "network_gb_per_second"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name} must be more than 0, not {value}")
        require(
            self.sharded.sharded_dataset_dir is None,
            "a plan cannot read --sharded_dataset_dir; give the dataset before it was split, with --dataset_path",
        )
        require(
            ALL in self.keep_tokens or self.tokens is None,
            "--keep_tokens needs a dataset to count in; give --dataset_path instead of --tokens",
        )
        require(
            self.max_tokens_total is None or self.tokens is None,
            "--max_tokens_total and --tokens both say how many tokens there are; give one of them",
        )
        require(
            (self.dataset is None) != (self.tokens is None),
            "give either --dataset_path (or --dataset_name), to count its tokens, or --tokens",
        )
