"""The flags of the commands that split datasets: one field, one flag, one sentence of help."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import Flag
from layertap.config.checks import require, require_counts
from layertap.config.extract import local_path
from layertap.config.source import SourceConfig

_MOST_STREAMS = 512  # all are open for writing at once


@dataclass(frozen=True, kw_only=True)
class DealtConfig(SourceConfig):
    """A dataset to split between workers."""

    max_samples: Annotated[int | None, Flag(default="all of them")] = None
    """Stop after this many tasks or texts of the dataset."""

    on_bad_task: Literal["error", "skip"] = "error"
    """What to do with a malformed task, or one that repeats the id of an earlier task. error: stop.
    skip: leave it out and list it."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        super().__post_init__()
        require(self.dataset is not None, "give one of --dataset_path and --dataset_name")
        require_counts(self, "max_samples")


@dataclass(frozen=True, kw_only=True)
class StreamsConfig(DealtConfig):
    """Split a dataset into one JSONL file for each worker, round robin by task."""

    num_streams: int
    """How many files to write."""

    output_dir: Annotated[str, Flag(metavar="FOLDER")] = "data/streams"
    """Where to write the files: a new folder, or one that already holds the same streams."""

    name_digits: int = 3
    """How many digits a file's number has: 3 makes stream_000.jsonl, 1 makes stream_0.jsonl."""

    def __post_init__(self) -> None:
        """Refuse invalid values; raises UsageError."""
        super().__post_init__()
        for name, most in (("num_streams", _MOST_STREAMS), ("name_digits", 9)):
            value = getattr(self, name)
            require(1 <= value <= most, f"--{name} must be 1 to {most}, not {value}")
        where = f"--output_dir {self.output_dir}"
        require("://" not in self.output_dir, f"{where}: is a URL; give a local folder, and copy it afterwards")
        require(
            self.output_folder.name not in ("", ".."),
            f"{where}: has no name; give the name of a folder to create for the streams",
        )

    @property
    def output_folder(self) -> Path:
        """`output_dir`, with `~` expanded."""
        return local_path(self.output_dir)


@dataclass(frozen=True, kw_only=True)
class CreateShardsConfig(DealtConfig):
    """Split a dataset into shards, which workers claim one at a time."""

    output: Annotated[str, Flag(metavar="FOLDER")]
    """Where to write the shards: a folder that all workers can reach, or gs://bucket/path."""

    num_shards: Annotated[int | None, Flag(needed="required, or --tasks_per_shard")] = None
    """How many shards to make. Make several per worker: fast workers then take more, and a lost
    worker costs little."""

    tasks_per_shard: Annotated[int | None, Flag(needed="required, or --num_shards")] = None
    """How many tasks or texts a shard holds."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        super().__post_init__()
        given = self.num_shards is not None, self.tasks_per_shard is not None
        require(sum(given) == 1, "give one of --num_shards and --tasks_per_shard")
        require_counts(self, "num_shards", "tasks_per_shard")


@dataclass(frozen=True)
class _OfDataset:
    """The flag that all commands on one sharded dataset share."""

    dataset: Annotated[tyro.conf.Positional[str], Flag(metavar="DATASET")]
    """The sharded dataset: a folder, or gs://bucket/path."""


@dataclass(frozen=True)
class ShardsStatusConfig(_OfDataset):
    """Show how many shards are done, what each worker does, and the time left."""

    watch: bool = False
    """Refresh until every shard is done or has failed."""

    poll_seconds: Annotated[float, Flag(metavar="SECONDS")] = 10.0
    """How long --watch waits between two refreshes."""

    json: bool = False
    """Print JSON: one object per refresh."""

    def __post_init__(self) -> None:
        """Refuse to refresh without a pause; raises UsageError."""
        require(0 < self.poll_seconds < math.inf, f"--poll_seconds must be positive, not {self.poll_seconds}")


@dataclass(frozen=True)
class ResetShardsConfig(_OfDataset):
    """Free shards, so that workers extract them again."""

    shard_id: Annotated[
        tyro.conf.Positional[tuple[int, ...]], Flag(metavar="SHARD ...", needed="required, or --all")
    ] = ()
    """The numbers of the shards."""

    all: bool = False
    """Free every shard. Workers may then extract the dataset with other settings."""

    force: bool = False
    """Free shards even if a live worker holds them. The worker loses what it has not committed."""

    def __post_init__(self) -> None:
        """Refuse to reset nothing; raises UsageError."""
        require(
            bool(self.shard_id) != self.all,
            "name the shards to reset, for example: layertap shards reset gs://bucket/dataset 3 7; or pass --all",
        )


@dataclass(frozen=True)
class VerifyConfig:
    """Read the output of one or several runs back, and check every byte."""

    path: Annotated[tyro.conf.Positional[str], Flag(metavar="FOLDER")]
    """The output folder of a run, a folder with several of them, or a sharded dataset, to check its
    finished shards. A local path, or a URL such as gs://bucket/activations/tpu_0."""

    sharded_dataset: Annotated[str | None, Flag(metavar="DATASET")] = None
    """The sharded dataset that FOLDER was extracted from, if FOLDER has moved since."""

    json: bool = False
    """Print the result as JSON."""
