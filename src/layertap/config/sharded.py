"""Settings for a dataset in shards, a part of `RunConfig`."""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from layertap.config.arguments import Flag
from layertap.config.checks import require, require_counts
from layertap.errors import UsageError


@dataclass(frozen=True)
class ShardedConfig:
    """A dataset whose shards several workers claim."""

    use_sharded_dataset: Annotated[bool, Flag("input")] = False
    """Process the shards of --sharded_dataset_dir one at a time. Implied by that flag."""

    sharded_dataset_dir: Annotated[str | None, Flag("input", "FOLDER")] = None
    """Instead of --dataset_path: a dataset that `layertap shards create` made, in a folder or at
    gs://bucket/path."""

    preferred_shard_id: Annotated[int | None, Flag("worker", "SHARD")] = None
    """The shard to start with, if no other worker has it. Give each worker a different one."""

    max_shards: Annotated[int | None, Flag("worker", default="as many as there are")] = None
    """Stop after this many shards."""

    lease_seconds: Annotated[float, Flag("worker", "SECONDS")] = 120.0
    """How long a worker may be silent before another one takes its shard. A worker reports four
    times in this time."""

    engine: Annotated[Literal["none", "local", "ray"], Flag("worker")] = "none"
    """none: this process is one worker. local: it starts --num_workers workers on this machine, and
    restarts them if they die. ray: Ray does the same, here or on a cluster."""

    num_workers: Annotated[int | None, Flag("worker")] = None
    """How many workers --engine starts. They are numbered from --worker_id."""

    ray_address: Annotated[str | None, Flag("worker", "HOST:PORT", "a new Ray on this machine")] = None
    """The cluster for --engine ray. auto uses the cluster that this machine belongs to."""

    resources_per_worker: Annotated[str | None, Flag("worker", "JSON", "one CPU")] = None
    """What --engine ray reserves for each worker, such as '{"TPU": 4}'."""

    def __post_init__(self) -> None:
        """Refuse invalid values; raises UsageError."""
        url = self.sharded_dataset_dir
        require(url is not None or not self.use_sharded_dataset, "--use_sharded_dataset needs --sharded_dataset_dir")
        for name in ("preferred_shard_id", "max_shards"):
            require(url is not None or getattr(self, name) is None, f"--{name} needs --sharded_dataset_dir")
        require(
            (self.preferred_shard_id or 0) >= 0, "--preferred_shard_id must not be negative; shards are counted from 0"
        )
        require_counts(self, "max_shards", "num_workers")
        require(self.engine == "none" or url is not None, f"--engine {self.engine} needs --sharded_dataset_dir")
        require(self.engine == "none" or self.num_workers is not None, f"--engine {self.engine} needs --num_workers")
        require(self.engine != "none" or self.num_workers is None, "--num_workers needs an --engine")
        for name in ("ray_address", "resources_per_worker"):
            require(getattr(self, name) is None or self.engine == "ray", f"--{name} needs --engine ray")
        host, _, port = (self.ray_address or "localhost:1").rpartition(":")
        require(
            self.ray_address == "auto" or (host != "" and "/" not in host and _is_port(port)),
            f"--ray_address {self.ray_address}: give auto, or the HOST:PORT that `ray start --head` printed",
        )
        _ = self.worker_resources
        require(1 <= self.lease_seconds < math.inf, f"--lease_seconds must be at least 1, not {self.lease_seconds}")

    @property
    def worker_resources(self) -> dict[str, float]:
        """What Ray reserves for each worker; raises UsageError if the flag is invalid."""
        given = f"--resources_per_worker {self.resources_per_worker}"
        try:
            found = json.loads(self.resources_per_worker or "{}")
        except ValueError as error:
            raise UsageError(f"{given}: is not JSON: {error}; give '{{\"TPU\": 4}}'") from error
        amounts = found.values() if isinstance(found, dict) else [None]
        require(
            all(isinstance(it, int | float) and it is not True and 0 < it < math.inf for it in amounts),
            f"{given}: give names with amounts above 0, such as '{{\"TPU\": 4}}'",
        )
        return {"CPU": 1, **found}


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 1 << 16
