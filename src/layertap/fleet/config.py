"""The flags of the commands that deal datasets out, as in `layertap.config`: one field, one flag, one sentence."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from layertap.config import local_path
from layertap.dataset import DatasetFormat
from layertap.errors import UsageError

_MOST_STREAMS = 512  # all are open for writing at once


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The dataset that is dealt out."""

    dataset_path: str | None = None
    """ARC tasks or plain text: a JSONL or JSON file, or a folder of JSON files; a local path or any fsspec URL."""

    dataset_format: DatasetFormat = "auto"
    """The shape of --dataset_path; auto finds it out from the content."""

    dataset_name: str | None = None
    """Instead of --dataset_path: a Hugging Face dataset, by its Hub id or as a local folder."""

    dataset_config: str | None = None
    """Which configuration of --dataset_name, where it has several."""

    dataset_split: str = "train"
    """Which split of --dataset_name."""

    column_name: str | None = None
    """The column of --dataset_name that holds the text, the task or the BARC examples; None stands for the row."""

    max_samples: int | None = None
    """Stop after this many tasks or texts of the dataset; None stands for all."""

    on_bad_task: Literal["error", "skip"] = "error"
    """A malformed task, or one whose id an earlier one has, stops the command, or is left out and listed."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        if (self.dataset_path is None) == (self.dataset_name is None):
            raise UsageError("give one of --dataset_path and --dataset_name")
        if self.dataset_name is not None and self.dataset_format != "auto":
            raise UsageError("--dataset_format is the shape of files; with --dataset_name give --column_name")
        if self.dataset_name is None:
            hub = {"dataset_config": None, "dataset_split": "train", "column_name": None}
            for name, default in hub.items():
                if getattr(self, name) != default:
                    raise UsageError(f"--{name} belongs to --dataset_name")
        if self.max_samples is not None and self.max_samples < 1:
            raise UsageError(f"--max_samples must be at least 1, not {self.max_samples}")


@dataclass(frozen=True, kw_only=True)
class StreamsConfig(SourceConfig):
    """Deal a dataset out to workers: one JSONL file each, round robin."""

    num_streams: int
    """How many files."""

    output_dir: str = "data/streams"
    """The folder for the files; a new one, or the one that holds the same streams already."""

    name_digits: int = 3
    """Digits of the number in stream_000.jsonl; 1 makes stream_0.jsonl."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense; raises UsageError."""
        super().__post_init__()
        if not 1 <= self.num_streams <= _MOST_STREAMS:
            raise UsageError(f"--num_streams must be 1 to {_MOST_STREAMS}, not {self.num_streams}")
        if not 1 <= self.name_digits <= 9:
            raise UsageError(f"--name_digits must be 1 to 9, not {self.name_digits}")
        if "://" in self.output_dir:
            raise UsageError(f"--output_dir {self.output_dir}: is a URL; give a local folder, and copy it afterwards")
        if self.output_folder.name in ("", ".."):
            raise UsageError(
                f"--output_dir {self.output_dir}: give a folder by its name, which is made for the streams"
            )

    @property
    def output_folder(self) -> Path:
        """`output_dir`, with `~` expanded."""
        return local_path(self.output_dir)


@dataclass(frozen=True, kw_only=True)
class CreateShardsConfig(SourceConfig):
    """Cut a dataset into shards that workers claim one after another."""

    output: str
    """Where the sharded dataset goes: a folder that all workers reach, or gs://bucket/path."""

    num_shards: int | None = None
    """How many shards; several for each worker, so that the fast ones take more and a lost one costs little."""

    tasks_per_shard: int | None = None
    """Instead of --num_shards: how many tasks or texts a shard has."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        super().__post_init__()
        if (self.num_shards is None) == (self.tasks_per_shard is None):
            raise UsageError("give one of --num_shards and --tasks_per_shard")
        for name in ("num_shards", "tasks_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class ShardsStatusConfig:
    """Say which shards of a dataset are done, claimed, failed and free."""

    dataset: tyro.conf.Positional[str]
    """The sharded dataset: a folder or gs://bucket/path."""

    json: bool = False
    """Print every shard, as JSON."""


@dataclass(frozen=True)
class FleetStatusConfig:
    """Say what the workers of a sharded dataset do, how fast, and when they will be done."""

    dataset: tyro.conf.Positional[str]
    """The sharded dataset: a folder or gs://bucket/path."""

    watch: bool = False
    """Look again and again, until every shard is done or failed."""

    poll_seconds: float = 10.0
    """Seconds between two looks."""

    json: bool = False
    """Print JSON, an object for each look."""

    def __post_init__(self) -> None:
        """Refuse to look without a pause; raises UsageError."""
        if not 0 < self.poll_seconds < math.inf:
            raise UsageError(f"--poll_seconds must be positive, not {self.poll_seconds}")


@dataclass(frozen=True)
class ResetShardsConfig:
    """Make shards free again, so that they are extracted once more."""

    dataset: tyro.conf.Positional[str]
    """The sharded dataset: a folder or gs://bucket/path."""

    shard_id: tyro.conf.Positional[tuple[int, ...]] = ()
    """Which shards, by their numbers."""

    all: bool = False
    """Every shard. What workers agreed to extract is forgotten too, so that they may extract something else."""

    force: bool = False
    """Take a shard away from a worker whose lease is running; what it has not committed is lost."""

    def __post_init__(self) -> None:
        """Refuse to reset nothing; raises UsageError."""
        if bool(self.shard_id) == self.all:
            raise UsageError(
                "name the shards to reset, as: layertap shards reset gs://bucket/dataset 3 7; or pass --all"
            )


@dataclass(frozen=True)
class VerifyConfig:
    """Read output back and check it: that of one run, of all runs below a place, or of a sharded dataset's workers."""

    path: tyro.conf.Positional[str]
    """The output folder of a run, a folder of several, or a sharded dataset whose finished shards are to be checked;
    or a URL of one (gs://bucket/activations/tpu_0, gs://bucket/activations, gs://bucket/dataset)."""

    sharded_dataset: str | None = None
    """The sharded dataset whose finished shards PATH holds, where they do not lie any more where they were written."""

    json: bool = False
    """Print the result as JSON."""
