"""The settings of a run: one frozen dataclass, from which the command line is made.

`RunConfig` describes a run. `ExtractConfig` describes a run to execute; `layertap plan` takes the
same settings to estimate a run (`plan.py`).

Each field is one flag, and the text under it is the flag's help (`arguments.py` makes the page).
Contradictions are refused here, before anything is read. What depends on the model (does it have
that layer?) is checked once the model's config has been read.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import LAYERS, SELECTION, SEVERAL, Flag
from layertap.config.checks import require, require_counts
from layertap.config.sharded import ShardedConfig
from layertap.config.source import SourceConfig
from layertap.config.upload import UploadConfig
from layertap.core.selection import ALL, parse_selection
from layertap.core.taps import SITES, Site
from layertap.errors import UsageError

Overlong = Literal["error", "skip", "truncate", "split"]
FormatName = Literal["pickle", "safetensors"]
StorageDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3", "int8"]
QUANTISED: tuple[StorageDtype, ...] = ("float8_e4m3", "int8")

# Settings that must keep their default if the dataset is split into shards.
_OF_ITS_OWN_DATASET: Mapping[str, object] = {
    "dataset_format": "auto",
    "column_name": None,
    "max_tasks": None,
    "max_tokens_total": None,
    "total_machines": 1,
    "checkpointing": True,
}

_CHECKPOINTS = "./checkpoints"

# A multiple of the block size of every attention kernel (model/attention*.py).
_ROW_MULTIPLE = 256


@dataclass(frozen=True)
class HostsConfig:
    """How several hosts run one model together; a part of `RunConfig`."""

    multihost: Annotated[bool, Flag("host")] = False
    """This process is one of several hosts that run one model together. Start the same command on
    each host. On Cloud TPU you need no other flag of this group."""

    num_hosts: Annotated[int | None, Flag("host", default="JAX detects it on Cloud TPU, Slurm and Open MPI")] = None
    """How many hosts there are."""

    host_id: Annotated[int | None, Flag("host", default="JAX detects it")] = None
    """The number of this host, counted from 0."""

    coordinator_address: Annotated[str | None, Flag("host", "HOST:PORT", "JAX detects it")] = None
    """A free port of host 0 that all hosts can reach."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        given = [name for name in ("num_hosts", "host_id", "coordinator_address") if getattr(self, name) is not None]
        require(self.multihost or not given, f"--{' --'.join(given)}: works only with --multihost")
        require(
            len(given) in (0, 3),
            f"--{' --'.join(given)}: give all of --num_hosts --host_id --coordinator_address, or none",
        )
        require_counts(self, "num_hosts")
        require(
            self.host_id is None or 0 <= self.host_id < (self.num_hosts or 1),
            f"--host_id {self.host_id} is not one of {self.num_hosts} hosts (from 0)",
        )
        host, _, port = (self.coordinator_address or "localhost:1").rpartition(":")
        require(
            host != "" and "/" not in host and port.isdecimal() and 0 < int(port) <= 65535,
            f"--coordinator_address {self.coordinator_address}: give HOST:PORT",
        )


@dataclass(frozen=True)
class RunConfig(SourceConfig):
    """Describe a run, to execute or to plan it."""

    max_tasks: Annotated[int | None, Flag("input", default="all tasks")] = None
    """Stop after this many tasks of the dataset."""

    max_tokens_total: Annotated[int | None, Flag("input", "TOKENS", "all tokens")] = None
    """Stop at the end of the sample that brings the stored tokens to this number. To continue, run
    the same command with more tokens or without this flag."""

    on_bad_task: Annotated[Literal["error", "skip"], Flag("input")] = "error"
    """What to do with a malformed task. error: stop the run. skip: leave it out and list it in
    metadata.json."""

    grid_encoder: Annotated[str, Flag("prompt", "ENCODER")] = "GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))"
    """How to write a grid as text: grid encoders, nested."""

    prompt_version: Annotated[str, Flag("prompt", "NAME")] = "output-from-examples-v0"
    """The wording of the prompt: output-from-examples-v0 (full instruction) or
    output-from-examples-v1 (short)."""

    prompt_template: Annotated[str | None, Flag("prompt", "FOLDER")] = None
    """A folder with your own system.j2, user.j2 and assistant.j2, instead of --prompt_version."""

    predictions_per_task: Annotated[int, Flag("prompt")] = 8
    """How many augmented prompts to make from each test input."""

    include_answer: Annotated[bool, Flag("prompt")] = False
    """Add the test output to the prompt as the assistant's answer, if it is known."""

    max_train_pairs: Annotated[int | None, Flag("prompt", default="all of them")] = None
    """The most train pairs of a task to show. --random_seed draws them for each prediction.
    RE-ARC has 1,000 per task."""

    add_generation_prompt: Annotated[bool, Flag("prompt")] = False
    """End each conversation with the start of an assistant turn."""

    random_seed: Annotated[int, Flag("prompt", "SEED")] = 42
    """The random seed for augmentation."""

    model_path: Annotated[str, Flag(metavar="MODEL")] = "Qwen/Qwen2.5-0.5B"
    """A model on the Hugging Face Hub, or a local folder with a checkpoint."""

    revision: Annotated[str | None, Flag("model", "REVISION", "the newest commit")] = None
    """The branch, tag or commit of a model on the Hub. --model_path NAME@REVISION does the same."""

    adapter: Annotated[tuple[str, ...], SEVERAL, Flag("model", "FOLDER_OR_ID ...", "none")] = ()
    """PEFT LoRA adapters to merge into the model, in this order. Each is a local folder or on the
    Hub."""

    compute_dtype: Annotated[Literal["bfloat16", "float32"], Flag("model")] = "bfloat16"
    """The number format of matrix products. Sums, norms, softmax and the residual stream are always
    float32."""

    layers_to_extract: Annotated[tuple[int, ...], LAYERS, Flag(default="all layers")] = ()
    """Which layers to save, counted from 0: 6 12 or 6,12 or 1-3 or all. Layers above the highest of
    these are neither loaded nor run."""

    activation_type: Annotated[tuple[Site, ...], Flag("tap")] = ("residual",)
    """Which sites to save in each layer. residual, residual_in, residual_mid: the residual stream
    after the layer, before it, and between its blocks. attn, mlp: what that block adds to the
    stream. attn_in, mlp_in: the input of the block. heads, neurons: the input of the block's last
    matrix product. All sites come from one forward pass."""

    batch_size: Annotated[int | None, Flag("model", "ROWS", "4, or 1 on a CPU")] = None
    """How many rows of tokens each device computes in one step."""

    mesh: Annotated[str, Flag("model", "MESH")] = "auto"
    """How several devices share the work, such as data=8,fsdp=8. Rows are split over both, weights
    over fsdp. auto splits the weights only if they do not fit in memory otherwise."""

    share_prefix: Annotated[bool, Flag("model")] = True
    """Compute once what all prompts of a run begin with, and continue from there."""

    row_length: Annotated[int, Flag("model", "TOKENS")] = 4096
    """The length of a row. Several prompts are packed into one row. A longer prompt gets a row that
    is two, four, ... times as long."""

    max_seq_length: Annotated[int, Flag("prompt", "TOKENS")] = 16_384
    """The longest prompt that is extracted whole."""

    overlong: Annotated[Overlong, Flag("prompt")] = "error"
    """What to do with a prompt longer than --max_seq_length. error: stop the run. skip: leave it
    out. truncate: cut off its end. split: cut it into contexts of --max_seq_length tokens, each a
    sample. metadata.json lists skipped and truncated prompts. An ARC prompt is never split, and
    never loses part of its question."""

    split_overlap: Annotated[int, Flag("prompt", "TOKENS")] = 0
    """With --overlong split: how many tokens each context repeats from the one before it."""

    window_samples: Annotated[int, Flag("model", "PROMPTS")] = 1024
    """How many prompts to pack together. A larger number fills the rows better; a smaller one
    starts sooner."""

    certify: Annotated[int, Flag("model", "PROMPTS", "none")] = 0
    """Run this many prompts in float32 too, and record in metadata.json how close each layer comes
    to it."""

    output_dir: Annotated[str, Flag("output", "FOLDER_OR_URL")] = "./activations"
    """Where to write the shards and metadata.json: a folder, or a URL such as gs://bucket/prefix.
    Shards go to a URL from memory, and never to the disk."""

    format: Annotated[FormatName, Flag("output")] = "pickle"
    """pickle: gzipped pickles, which need only numpy. safetensors: one memory-mapped file per
    shard, faster to train from."""

    storage_dtype: Annotated[
        StorageDtype | None, Flag("output", default="float32 in pickles, bfloat16 in safetensors")
    ] = None
    """The number format on disk. A value that float16 cannot hold stops the run. float8_e4m3 and
    int8 have a float32 scale for each token, and need --format safetensors."""

    keep_tokens: Annotated[tuple[str, ...], SELECTION, Flag("output", default="all")] = (ALL,)
    """Which of the computed tokens to store. all: every token. cells: the cells of grids. answer:
    the assistant's answer. role:NAME: one role (system, user, assistant, tool, template or text).
    no_prefix: all except what every prompt begins with. Several names store the tokens of each."""

    on_nonfinite: Annotated[Literal["error", "keep"], Flag("output")] = "error"
    """What to do with an activation that has a NaN or an infinity. error: stop the run and name it.
    keep: store it unchanged and count it in the manifest."""

    shard_size_gb: Annotated[float, Flag("output", "GB")] = 1.0
    """The size of a shard before compression, in units of 10^9 bytes."""

    compress_shards: Annotated[bool, Flag("output")] = True
    """Compress pickles with gzip. safetensors are never compressed, because they are
    memory-mapped."""

    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = HostsConfig()
    """How several hosts run one model."""

    upload: Annotated[UploadConfig, tyro.conf.arg(name="")] = UploadConfig()  # noqa: RUF009 - it is frozen
    """Where to copy the shards."""

    worker_id: Annotated[int | None, Flag("worker", default="$TPU_WORKER_ID, or 0")] = None
    """The number of this worker. It names the worker's folder in a bucket, and its checkpoint."""

    machine_id: Annotated[int, Flag("worker")] = 0
    """Which share of the dataset this machine extracts: tasks machine_id, machine_id +
    total_machines, and so on."""

    total_machines: Annotated[int, Flag("worker")] = 1
    """How many machines share the dataset. Each takes every total_machines-th task."""

    sharded: Annotated[ShardedConfig, tyro.conf.arg(name="")] = ShardedConfig()  # noqa: RUF009 - it is frozen
    """A dataset that is split into shards."""

    metrics_port: Annotated[int | None, Flag("worker", "PORT")] = None
    """Serve Prometheus metrics at http://127.0.0.1:PORT/metrics. 0 picks a free port and prints
    it."""

    checkpoint_dir: Annotated[str, Flag("output", "FOLDER")] = _CHECKPOINTS
    """Where to keep checkpoint_worker_{id}.json, from which a stopped run resumes. With a URL as
    --output_dir it is kept there."""

    checkpointing: Annotated[bool, Flag("output")] = True
    """Keep a checkpoint, and resume from it. With --no_checkpointing, a folder that already holds
    shards is refused."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        super().__post_init__()
        require_counts(self, "total_machines", "predictions_per_task", "batch_size", "max_tasks")
        require_counts(self, "max_train_pairs", "max_tokens_total")
        require(
            self.overlong == "split" or self.split_overlap == 0,
            "--split_overlap works only with --overlong split",
        )
        require(
            0 <= self.split_overlap < self.max_seq_length,
            f"--split_overlap {self.split_overlap} must be less than --max_seq_length ({self.max_seq_length})",
        )
        twice = sorted({name for name in self.adapter if self.adapter.count(name) > 1})
        require(not twice, f"--adapter {' '.join(twice)}: is given twice; give it once")
        require_counts(self, "row_length", "max_seq_length", "window_samples")
        parse_selection(self.keep_tokens)
        require(
            0 <= self.machine_id < self.total_machines,
            f"--machine_id {self.machine_id} is not one of {self.total_machines} machines"
            f" (0 to {self.total_machines - 1}); set --total_machines",
        )
        require(
            self.row_length % _ROW_MULTIPLE == 0,
            f"--row_length {self.row_length} must be a multiple of {_ROW_MULTIPLE}",
        )
        self._require_what_hosts_can_do()
        require(
            0 <= self.certify <= self.window_samples,
            f"--certify {self.certify} must be at most --window_samples ({self.window_samples}), and not negative",
        )
        require(
            self.format == "safetensors" or self.stored_as not in QUANTISED,
            f"--storage_dtype {self.stored_as} works only with --format safetensors: pickles are read without Layertap,"
            " by scripts that would take the codes for activations and not multiply them by the scales",
        )
        require(0 < self.shard_size_gb < math.inf, f"--shard_size_gb must be positive, not {self.shard_size_gb}")
        require("://" not in self.checkpoint_dir, f"--checkpoint_dir {self.checkpoint_dir}: is a URL; give a folder")
        if self.output_url is not None:
            self._require_one_place()
        else:
            self._require_other_place(self.upload.upload_to)
        port = self.metrics_port
        require(port is None or 0 <= port <= 65535, f"--metrics_port must be 0 to 65535, not {port}")
        require(
            min(self.layers_to_extract, default=0) >= 0,
            "--layers_to_extract: a layer must not be negative; layers are counted from 0",
        )
        require(len(self.activation_type) > 0, f"--activation_type needs at least one of {', '.join(SITES)}")
        require(self.worker >= 0, f"--worker_id must not be negative, but is {self.worker}")

    def _require_what_hosts_can_do(self) -> None:
        """Refuse what does not work when several hosts run the same steps."""
        many = self.hosts.multihost
        require(
            self.max_tokens_total is None or not many,
            "--max_tokens_total does not work with --multihost: all hosts must run the same steps, but would stop at"
            " different ones; use --max_tasks instead",
        )
        require(
            not (self.certify and many),
            "--certify does not work with --multihost; certify a smaller run with the same settings on one host",
        )
        require(
            not many or self.sharded.engine == "none",
            f"--engine {self.sharded.engine} does not work with --multihost: start the command on each host yourself",
        )

    def _require_one_place(self) -> None:
        """Refuse what belongs to a folder where the output goes to a URL."""
        where = f"--output_dir {self.output_dir}"
        require(
            re.fullmatch(r"\w[\w+.-]*://.*[^/].*", self.output_dir) is not None,
            f"{where}: is no URL of a place; give one such as gs://bucket/prefix, or a folder",
        )
        require(
            self.upload.url(0) is None,
            f"{where} is where the output goes, without a copy elsewhere: leave out --gcs_bucket and --upload_to, or"
            " give a folder as --output_dir",
        )
        require(
            self.checkpoint_dir == _CHECKPOINTS,
            f"{where} holds its checkpoint too: leave out --checkpoint_dir {self.checkpoint_dir}",
        )

    def _require_other_place(self, upload_to: str | None) -> None:
        if upload_to is None or "://" in upload_to:
            return
        here, there = self.output_folder.resolve(), local_path(upload_to).resolve()
        require(
            not (there.is_relative_to(here) or here.is_relative_to(there)),
            f"--upload_to {upload_to} and --output_dir {self.output_dir}: one lies in the other; give separate folders",
        )

    @property
    def worker(self) -> int:
        """The worker id: the flag, else `TPU_WORKER_ID`, else 0."""
        if self.worker_id is not None:
            return self.worker_id
        text = os.environ.get("TPU_WORKER_ID", "0")
        require(text.isdecimal(), f"TPU_WORKER_ID is {text!r}, not a number; give --worker_id")
        return int(text)

    @property
    def stored_as(self) -> StorageDtype:
        """The dtype on disk: the flag, else the default of the format."""
        return self.storage_dtype or ("float32" if self.format == "pickle" else "bfloat16")

    @property
    def output_url(self) -> str | None:
        """`output_dir`, where it is a URL."""
        return self.output_dir.rstrip("/") if "://" in self.output_dir else None

    @property
    def output_folder(self) -> Path:
        """`output_dir`, with `~` expanded, where it is a folder."""
        return local_path(self.output_dir)

    @property
    def output_place(self) -> str:
        """Either of them."""
        return self.output_url or str(self.output_folder)

    def output_below(self, name: str) -> str:
        """What is called `name` in that folder, or below that URL."""
        return str(self.output_folder / name) if self.output_url is None else f"{self.output_url}/{name}"

    @property
    def checkpoint_folder(self) -> Path:
        """`checkpoint_dir`, with `~` expanded."""
        return local_path(self.checkpoint_dir)

    @property
    def shard_bytes(self) -> int:
        """The largest shard, in bytes of uncompressed activations."""
        return int(self.shard_size_gb * 1e9)


@dataclass(frozen=True)
class ExtractConfig(RunConfig):
    """Run a language model over tasks, conversations or texts; save its activations."""

    def __post_init__(self) -> None:
        """Refuse no dataset, two datasets, and contradictions; raises UsageError."""
        super().__post_init__()
        if self.sharded.sharded_dataset_dir is None:
            require(self.dataset is not None, "give --dataset_path, or --dataset_name, or --sharded_dataset_dir")
            return
        require(self.dataset is None, "give one of --dataset_path, --dataset_name and --sharded_dataset_dir")
        for name, default in _OF_ITS_OWN_DATASET.items():
            require(
                getattr(self, name) == default,
                f"--{name} does not work with --sharded_dataset_dir: its shards are already made, each goes to one"
                " worker, and a worker always resumes a shard that it began",
            )


def local_path(text: str) -> Path:
    """Return `text` as a path with `~` expanded; raises UsageError if `~` names an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: {error}") from error
