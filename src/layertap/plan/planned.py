"""The run that is being thought of: its model's shape, its taps and its files. No weight of it is read."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 from here on
import numpy as np

from layertap.config.extract import local_path
from layertap.config.plan import PlanConfig
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.extract.setup import format_of_shards, resolve_run_taps
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import Qwen2Config
from layertap.plan.models import model_config
from layertap.shards.writer import ShardFormat


@dataclass(frozen=True)
class PlannedRun:
    """A run, resolved as far as its shapes go."""

    config: PlanConfig
    model: Qwen2Config
    taps: tuple[Tap, ...]
    form: ShardFormat

    @property
    def num_layers(self) -> int:
        """How many layers are loaded and run."""
        return self.taps[-1].layer + 1

    @property
    def compute_dtype(self) -> np.dtype:
        """Operands of matrix products."""
        return np.dtype(self.config.compute_dtype)

    def checkpoint(self) -> Checkpoint:
        """Where the tokenizer is; raises UsageError where there is none, ModelError where it cannot be fetched."""
        if self.config.tokenizer is not None:
            return Checkpoint(local_path(self.config.tokenizer), None, self.model)
        if not Path(self.config.model_path).expanduser().is_dir() and "/" not in self.config.model_path:
            raise UsageError(
                f"--model {self.config.model_path} is a size, which has no tokenizer: give --tokenizer FOLDER to count"
                " the dataset, or --tokens"
            )
        return open_checkpoint(self.config.model_path)


def planned_run(config: PlanConfig) -> PlannedRun:
    """Resolve `config`; raises ModelError where there is no such model, or it lacks a layer."""
    model = model_config(config.model_path)
    taps = resolve_run_taps(config, model)
    return PlannedRun(config, model, taps, format_of_shards(config, model, taps))
