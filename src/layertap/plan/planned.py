"""The run that is being thought of: its model's shape, its taps and its files. No weight of it is
read.

Also how many operations its forward pass is: products and causal attention; norms and the like are
less than a percent.
"""

import re
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
from layertap.model.config import Qwen2Config, published_config, read_config
from layertap.shards.encode import ShardFormat

# "7b", "Qwen/Qwen2.5-7B", "Qwen2.5-Coder-7B-Instruct": every release of one size has one shape.
_PUBLISHED = re.compile(r"(?:(?:Qwen/)?Qwen2\.5-(?:(?:Coder|Math)-)?)?(\d+(?:\.\d+)?b)(?:-Instruct)?", re.IGNORECASE)


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

    @property
    def values_per_token(self) -> int:
        """Numbers that are saved of a token, over all taps."""
        return self.form.bytes_per_token // self.form.dtype.itemsize

    @property
    def is_compressed(self) -> bool:
        """Whether its shards are gzipped."""
        return self.form.name == "pickle" and self.form.compress

    def checkpoint(self) -> Checkpoint:
        """Where the tokenizer is; raises UsageError or ModelError where it cannot be had."""
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


def model_config(model: str) -> Qwen2Config:
    """The shape of a checkpoint folder, a Hub id, or a published size, of which no file is needed.

    Raises ModelError where there is no such model or it is not a Qwen 2.5.
    """
    if (folder := Path(model).expanduser()).is_dir():
        return read_config(folder)
    if match := _PUBLISHED.fullmatch(model):
        return published_config(match[1].lower())
    return open_checkpoint(model).config


def layer_products(config: Qwen2Config) -> int:
    """Elements of one layer's kernels, each of which is multiplied once for a token."""
    heads = config.num_attention_heads * config.head_dim
    qkv = heads + 2 * config.num_key_value_heads * config.head_dim
    return config.hidden_size * (qkv + heads + 3 * config.intermediate_size)


def forward_flops(config: Qwen2Config, layers: int, tokens: float, attended: float) -> float:
    """Operations of `layers` layers on tokens with `attended` (query, key) pairs."""
    heads = config.num_attention_heads * config.head_dim
    return 2.0 * layers * (layer_products(config) * tokens + 2 * heads * attended)


def causal_pairs(tokens: float) -> float:
    """(query, key) pairs of a sample of so many tokens: each sees itself and those before it."""
    return tokens * (tokens + 1) / 2
