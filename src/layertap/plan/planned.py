"""The planned run: its model's shape, its taps and its files. No weights are read.

It also counts the operations of the forward pass (products and causal attention; norms and the rest
are less than a percent), and estimates the memory of a step on a chip. The estimate uses shapes,
and is within 10 % of the TPU compiler's own figures for every configuration in docs/tpu.md. That is
good enough to choose a number of rows, but not to go to the limit. So a step may use only `_USABLE`
of a chip's memory, also because frameworks need some for themselves.

Without a number of rows, the plan recommends the largest power of two that fits, at most
`_MOST_ROWS`. More rows do not make products faster, and leave more of a window to steps of one row.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from pathlib import Path

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 from here on
import numpy as np

from layertap.config.extract import local_path
from layertap.config.plan import PlanConfig
from layertap.core.taps import Tap, layers_to_run
from layertap.errors import DoesNotFitError, UsageError
from layertap.model import weights
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import DecoderConfig, published_config
from layertap.model.mesh import MeshShape, auto_shape, parse_mesh, weight_bytes
from layertap.pipeline.packing import row_ladder
from layertap.pipeline.setup import format_of_shards, resolve_run_taps
from layertap.pipeline.step import plan_for, transfer_dtype
from layertap.plan.accelerators import Accelerator
from layertap.shards.form import ShardFormat

# "7b", "Qwen/Qwen2.5-7B", "Qwen2.5-Coder-7B-Instruct": all releases of one size have one shape.
_PUBLISHED = re.compile(r"(?:(?:Qwen/)?Qwen2\.5-(?:(?:Coder|Math)-)?)?(\d+(?:\.\d+)?b)(?:-Instruct)?", re.IGNORECASE)
_USABLE = 0.9
_MOST_ROWS = 16
# How many float32 vectors of the stream's width a token needs at once (the stream, queries, keys,
# temporaries); and the share of all activations that are on a TPU, on their way to the host. Both
# are fitted to the compiler's figures (docs/LOG.md).
_STREAMS = 6
_ON_THEIR_WAY = 0.7
# How many float32 vectors of the MLP's width a token needs, for the tokens that go through
# together.
_MLP_VALUES = 3
_FLOAT32 = 4
_GATHERED = 2  # layers (model/mesh.py)
_IN_FLIGHT = 2  # steps whose outputs are on a GPU


@dataclass(frozen=True)
class PlannedRun:
    """A run with all its shapes resolved."""

    config: PlanConfig
    model: DecoderConfig
    taps: tuple[Tap, ...]
    form: ShardFormat

    @property
    def num_layers(self) -> int:
        """How many layers are loaded and run."""
        return layers_to_run(self.taps)

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of the operands of matrix products."""
        return np.dtype(self.config.compute_dtype)

    @property
    def values_per_token(self) -> int:
        """How many numbers are stored per token, over all taps."""
        return self.form.bytes_per_token // self.form.dtype.itemsize

    @property
    def is_compressed(self) -> bool:
        """Whether its shards are gzipped."""
        return self.form.name == "pickle" and self.form.compress

    def checkpoint(self) -> Checkpoint:
        """Find the tokenizer; raises UsageError or ModelError if there is none."""
        if self.config.tokenizer is not None:
            return Checkpoint(local_path(self.config.tokenizer), None, self.model)
        if not Path(self.config.model_path).expanduser().is_dir() and "/" not in self.config.model_path:
            raise UsageError(
                f"--model {self.config.model_path} is a size, which has no tokenizer: give --tokenizer FOLDER to count"
                " the dataset, or --tokens"
            )
        return open_checkpoint(self.config.model_path, self.config.revision, self.config.adapter)

    def checkpoint_with_tokenizer(self) -> Checkpoint | None:
        """Find the tokenizer where that fetches nothing that the plan has not fetched already; None
        if there is none.

        Raises UsageError or ModelError as `checkpoint` does.
        """
        config = self.config
        if config.tokenizer is None and _published_size(config.model_path, config.revision) is not None:
            return None
        found = self.checkpoint()
        return found if config.tokenizer is not None or (found.folder / "tokenizer.json").is_file() else None


def planned_run(config: PlanConfig) -> PlannedRun:
    """Resolve `config`; raises ModelError if there is no such model, or it lacks a layer."""
    model = model_config(config.model_path, config.revision, config.adapter)
    taps = resolve_run_taps(config, model)
    return PlannedRun(config, model, taps, format_of_shards(config, model, taps))


def model_config(model: str, revision: str | None = None, adapters: Sequence[str] = ()) -> DecoderConfig:
    """Return the shape of a checkpoint folder, a Hub id, or a published size, which needs no file.

    Raises ModelError if there is no such model, or if Layertap does not support it.
    """
    size = _published_size(model, revision)
    return open_checkpoint(model, revision, adapters).config if size is None else published_config(size)


def _published_size(model: str, revision: str | None) -> str | None:
    """Return the size that a model is named by, such as `7b`; None if its files decide the
    shape.
    """
    match = _PUBLISHED.fullmatch(model)
    here = revision is not None or os.path.isdir(os.path.expanduser(model))
    return None if match is None or here else match[1].lower()


def layer_products(config: DecoderConfig) -> int:
    """Count the elements of one layer's kernels; each is multiplied once per token."""
    heads = config.num_attention_heads * config.head_dim
    qkv = heads + 2 * config.num_key_value_heads * config.head_dim
    return config.hidden_size * (qkv + heads + 3 * config.intermediate_size)


def forward_flops(config: DecoderConfig, layers: int, tokens: float, attended: float) -> float:
    """Count the operations of `layers` layers on tokens with `attended` (query, key) pairs."""
    heads = config.num_attention_heads * config.head_dim
    return 2.0 * layers * (layer_products(config) * tokens + 2 * heads * attended)


def causal_pairs(tokens: float) -> float:
    """Count the (query, key) pairs of a sample: each token sees itself and those before it."""
    return tokens * (tokens + 1) / 2


@dataclass(frozen=True)
class Fit:
    """The steps that fit, and the bytes of one chip that they use at the peak."""

    rows: int
    """Rows of the first rung on each chip: the requested ones if they fit, else the recommended."""
    memory: int
    longest_row: int
    """The longest row; each chip gets one."""
    longest_memory: int


def mesh_shape(run: PlannedRun, accelerator: Accelerator) -> MeshShape:
    """Choose how the accelerator's chips share rows and weights, by the run's own rule."""
    if run.config.mesh != "auto":
        return parse_mesh(run.config.mesh)
    return auto_shape(accelerator.chips, run_weight_bytes(run), accelerator.memory_bytes)


def run_weight_bytes(run: PlannedRun) -> int:
    """Return the bytes of the loaded weights: the embedding and the layers up to the last tap."""
    return _bytes_of(run.model, run.num_layers, run.compute_dtype)


@cache
def _bytes_of(model: DecoderConfig, layers: int, dtype: np.dtype) -> int:
    """Cached, because the shapes of a large model take a second and are needed for each trial."""
    return weight_bytes(weights.abstract_model(model, layers, dtype))


def fit_on(run: PlannedRun, accelerator: Accelerator) -> Fit:
    """Find the most rows of the first rung that fit, by halving, and the longest row that fits.

    Raises DoesNotFitError if one row of the first rung is too large.
    """
    ladder = row_ladder(run.config.row_length, run.config.max_seq_length)
    most = run.config.batch_size or _MOST_ROWS
    rows, _, memory = _first_that_fits(run, accelerator, [(most >> by, ladder[0]) for by in range(most.bit_length())])
    _, longest, longest_memory = _first_that_fits(run, accelerator, [(1, length) for length in reversed(ladder)])
    return Fit(rows, memory, longest, longest_memory)


def _first_that_fits(
    run: PlannedRun, accelerator: Accelerator, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int, int]:
    """Return the first shape that fits: rows, their length, and the bytes of a chip that they
    use.
    """
    mesh = mesh_shape(run, accelerator)
    for rows, length in shapes:
        memory = estimate_memory(run, accelerator, mesh, rows * length)
        if memory <= _USABLE * accelerator.memory_bytes:
            return rows, length, memory
    raise DoesNotFitError(
        f"{run.config.model_path} on {accelerator.name}, {rows} rows of {length} tokens per chip: needs"
        f" {memory / 1e9:.1f} GB of {accelerator.memory_bytes / 1e9:.0f} GB, estimated; use shorter rows, more"
        " chips, or fewer layers"
    )


def estimate_memory(run: PlannedRun, accelerator: Accelerator, mesh: MeshShape, tokens: int) -> int:
    """Estimate the peak bytes of one chip for a step with `tokens` tokens per chip."""
    model, width = run.model, run.model.hidden_size
    one_layer = _bytes_of(replace(model, vocab_size=1), 1, run.compute_dtype)
    held = run_weight_bytes(run) // mesh.fsdp + (_GATHERED * one_layer if mesh.fsdp > 1 else 0)
    dtype = transfer_dtype(run.compute_dtype, run.form.dtype)
    block = gcd(plan_for(accelerator.platform, dtype).token_block or 0, tokens)
    passing = tokens * width * _STREAMS * _FLOAT32 + block * model.intermediate_size * _MLP_VALUES * _FLOAT32
    captured = tokens * run.values_per_token * dtype.itemsize
    # A TPU program passes activations to the host while it runs; others keep all of them until the
    # step has ended.
    outputs = captured * (_ON_THEIR_WAY if accelerator.platform == "tpu" else _IN_FLIGHT)
    return round(held + passing + outputs)
