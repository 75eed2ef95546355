"""The settings of a run: one frozen dataclass, from which the command line is made.

Each field is one flag, and the sentence under it is the flag's help. Contradictions are refused here, before anything
is read; what only the model can tell (does it have that layer?) is refused when the model's config has been read.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from layertap.dataset import DatasetFormat
from layertap.dataset.config import ShardedConfig
from layertap.errors import UsageError
from layertap.store.config import UploadConfig
from layertap.tap import Site

FormatName = Literal["pickle", "safetensors"]
StorageDtype = Literal["float32", "bfloat16", "float16"]

# What the blocks of every attention kernel divide (model/attention*.py).
_ROW_MULTIPLE = 256


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class HostsConfig:
    """One model over the chips of several hosts; a part of `ExtractConfig`."""

    multihost: bool = False
    """This process is one of several hosts that run one model together; start the same command on each. On Cloud TPU
    that is all there is to say."""

    num_hosts: int | None = None
    """How many hosts there are; None: JAX finds out (Cloud TPU, Slurm, Open MPI)."""

    host_id: int | None = None
    """This host's number, from 0; None: JAX finds out."""

    coordinator_address: str | None = None
    """HOST:PORT of host 0, free on it and reachable from all; None: JAX finds out."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        given = [name for name in ("num_hosts", "host_id", "coordinator_address") if getattr(self, name) is not None]
        _require(self.multihost or not given, f"--{' --'.join(given)}: only together with --multihost")
        _require(
            len(given) in (0, 3),
            f"--{' --'.join(given)}: give all of --num_hosts --host_id --coordinator_address, or none",
        )
        _require(self.num_hosts is None or self.num_hosts >= 1, f"--num_hosts must be at least 1, not {self.num_hosts}")
        _require(
            self.host_id is None or 0 <= self.host_id < (self.num_hosts or 1),
            f"--host_id {self.host_id} is not one of {self.num_hosts} hosts (from 0)",
        )
        host, _, port = (self.coordinator_address or "localhost:1").rpartition(":")
        _require(
            host != "" and "/" not in host and port.isdecimal() and 0 < int(port) <= 65535,
            f"--coordinator_address {self.coordinator_address}: give HOST:PORT",
        )


@dataclass(frozen=True)
class ExtractConfig:
    """Extract activations of a Qwen 2.5 model from ARC tasks or plain text."""

    dataset_path: str | None = None
    """ARC tasks or plain text: a JSONL or JSON file, or a folder of JSON files; a local path or any fsspec URL."""

    dataset_format: DatasetFormat = "auto"
    """The shape of the dataset; auto finds it out from the content."""

    sharded: Annotated[ShardedConfig, tyro.conf.arg(name="")] = ShardedConfig()  # noqa: RUF009 - it is frozen
    """A dataset in shards."""

    max_tasks: int | None = None
    """Stop after this many tasks of the dataset; None stands for all."""

    machine_id: int = 0
    """Which share of the dataset is this machine's: tasks machine_id, machine_id + total_machines, ..."""

    total_machines: int = 1
    """How many machines share the dataset, round robin by task."""

    on_bad_task: Literal["error", "skip"] = "error"
    """A malformed task stops the run, or is skipped and listed in the manifest."""

    grid_encoder: str = "GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))"
    """How a grid becomes text: an expression of composed encoders."""

    prompt_version: str = "output-from-examples-v0"
    """The prompt's wording: output-from-examples-v0 (full instruction) or output-from-examples-v1 (short)."""

    prompt_template: str | None = None
    """A folder with your own system.j2, user.j2 and assistant.j2, instead of --prompt_version."""

    predictions_per_task: int = 8
    """How many augmented prompts are made of each test input."""

    include_answer: bool = False
    """Put the test output into the prompt, as the assistant's answer, where it is known."""

    random_seed: int = 42
    """Seed of the augmentations; each depends on the seed, the task's id and the prediction's number alone."""

    model_path: str = "Qwen/Qwen2.5-0.5B"
    """A checkpoint folder in Hugging Face layout, or a Hub id."""

    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Operands of matrix products; sums, norms, softmax and the residual stream are float32 in either case."""

    layers_to_extract: tuple[int, ...] = ()
    """Layer numbers, counted from 0; none stand for all. No layer above the last one is loaded or run."""

    activation_type: tuple[Site, ...] = ("residual",)
    """residual: the layer's output; mlp, attn: that block's output before its residual add. Several share one pass."""

    batch_size: int | None = None
    """Rows a step, on each device; None stands for 4, and for 1 on CPU, where rows run one after another anyway and a
    step's outputs wait in memory."""

    mesh: str = "auto"
    """How several devices share the work, such as data=8,fsdp=8: rows over both, weights cut along fsdp; auto cuts
    weights only as far as memory needs it."""

    row_length: int = 4096
    """Tokens a row, into which samples are packed; a longer sample gets a row of twice, four times, ... this length."""

    max_seq_length: int = 16_384
    """The longest sample that is extracted, in tokens."""

    overlong: Literal["error", "skip", "truncate"] = "error"
    """A longer sample stops the run, is skipped, or is cut at its end; the manifest counts and lists it."""

    window_samples: int = 1024
    """How many samples are packed together: more fill rows better, fewer start sooner."""

    certify: int = 0
    """Run this many prompts in float32 too, before the run, and put cosine and relative error at each layer and site
    into the manifest; not with --multihost."""

    output_dir: str = "./activations"
    """Where shards and metadata.json are written; one folder a site where there are several."""

    format: FormatName = "pickle"
    """pickle: gzipped pickles that numpy alone reads. safetensors: one file a layer and site, memory-mapped by any
    framework."""

    storage_dtype: StorageDtype | None = None
    """The dtype on disk; None stands for float32 in pickles, which holds bfloat16 exactly, and bfloat16 in safetensors.
    float16 is checked for overflow; bfloat16 needs ml_dtypes to read into numpy."""

    shard_size_gb: float = 1.0
    """A shard is closed before its activations exceed this many GB (1e9 bytes) before compression."""

    compress_shards: bool = True
    """Compress pickles with gzip; safetensors are never compressed, so that they can be memory-mapped."""

    hosts: Annotated[HostsConfig, tyro.conf.arg(name="")] = HostsConfig()
    """Several hosts as one machine."""

    upload: Annotated[UploadConfig, tyro.conf.arg(name="")] = UploadConfig()  # noqa: RUF009 - it is frozen
    """Where shards are copied to."""

    worker_id: int | None = None
    """This worker's number; None stands for TPU_WORKER_ID of the environment, else 0."""

    metrics_port: int | None = None
    """Serve metrics for Prometheus at http://127.0.0.1:PORT/metrics; 0 takes any free port and says which."""

    checkpoint_dir: str = "./checkpoints"
    """Where checkpoint_worker_{id}.json is kept."""

    checkpointing: bool = True
    """Keep a checkpoint and resume from it. Without, a folder that already holds shards is refused."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        positive = (
            "total_machines",
            "predictions_per_task",
            "batch_size",
            "max_tasks",
            "row_length",
            "max_seq_length",
            "window_samples",
        )
        for name in positive:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
        _require(
            0 <= self.machine_id < self.total_machines,
            f"--machine_id {self.machine_id} is not one of {self.total_machines} machines"
            f" (0 to {self.total_machines - 1}); set --total_machines",
        )
        _require(
            self.row_length % _ROW_MULTIPLE == 0,
            f"--row_length {self.row_length} must be a multiple of {_ROW_MULTIPLE}",
        )
        _require(
            not (self.certify and self.hosts.multihost),
            "--certify runs on one host, not with --multihost: certify with a smaller run of the same settings",
        )
        _require(
            0 <= self.certify <= self.window_samples,
            f"--certify {self.certify} must be at most --window_samples ({self.window_samples}), and not negative",
        )
        _require(0 < self.shard_size_gb < math.inf, f"--shard_size_gb must be positive, not {self.shard_size_gb}")
        _require(
            not self.hosts.multihost or self.sharded.engine == "none",
            f"--engine {self.sharded.engine} does not go with --multihost: start the command on each host yourself",
        )
        for flag, folder in (("output_dir", self.output_dir), ("checkpoint_dir", self.checkpoint_dir)):
            _require("://" not in folder, f"--{flag} {folder}: is a URL; give a local folder")
        self._require_other_place(self.upload.upload_to)
        self._require_one_dataset()
        port = self.metrics_port
        _require(port is None or 0 <= port <= 65535, f"--metrics_port must be 0 to 65535, not {port}")
        _require(min(self.layers_to_extract, default=0) >= 0, "--layers_to_extract counts layers from 0")
        _require(len(self.activation_type) > 0, "--activation_type needs at least one of residual, mlp, attn")
        _require(self.worker >= 0, f"--worker_id must not be negative, but is {self.worker}")

    def _require_one_dataset(self) -> None:
        if self.sharded.sharded_dataset_dir is None:
            _require(self.dataset_path is not None, "give --dataset_path, or --sharded_dataset_dir")
            return
        _require(self.dataset_path is None, "give one of --dataset_path and --sharded_dataset_dir")
        settings = {"dataset_format": "auto", "max_tasks": None, "total_machines": 1, "checkpointing": True}
        for name, default in settings.items():
            _require(
                getattr(self, name) == default,
                f"--{name} does not go with --sharded_dataset_dir: its shards are what they are, each goes to one"
                " worker, and a worker always goes on in a shard that it has begun",
            )

    def _require_other_place(self, upload_to: str | None) -> None:
        if upload_to is None or "://" in upload_to:
            return
        here, there = self.output_folder.resolve(), local_path(upload_to).resolve()
        _require(
            not (there.is_relative_to(here) or here.is_relative_to(there)),
            f"--upload_to {upload_to} and --output_dir {self.output_dir} lie one within the other; give another folder",
        )

    @property
    def worker(self) -> int:
        """The worker id: the flag, else `TPU_WORKER_ID`, else 0."""
        if self.worker_id is not None:
            return self.worker_id
        text = os.environ.get("TPU_WORKER_ID", "0")
        _require(text.isdecimal(), f"TPU_WORKER_ID is {text!r}, not a number; give --worker_id")
        return int(text)

    @property
    def stored_as(self) -> StorageDtype:
        """The dtype on disk: the flag, else what suits the format."""
        return self.storage_dtype or ("float32" if self.format == "pickle" else "bfloat16")

    @property
    def output_folder(self) -> Path:
        """`output_dir`, with `~` expanded."""
        return local_path(self.output_dir)

    @property
    def checkpoint_folder(self) -> Path:
        """`checkpoint_dir`, with `~` expanded."""
        return local_path(self.checkpoint_dir)

    @property
    def shard_bytes(self) -> int:
        """The largest shard, in bytes of uncompressed activations."""
        return int(self.shard_size_gb * 1e9)


def local_path(text: str) -> Path:
    """`text` as a path with `~` expanded; raises UsageError where `~` stands for nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: {error}") from error
