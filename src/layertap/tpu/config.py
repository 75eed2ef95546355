"""The flags of `layertap tpu ...`, as in `layertap.config.extract`: one field, one flag, one
sentence.

They are here because nothing else reads them. Neither Google's client nor JAX is imported, so that
`--help` is fast and works without the `tpu-ops` extra. The flags of the workers are parsed too,
just as `layertap extract` will parse them, so that a mistake is found before machines are billed.
"""

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from layertap.config.arguments import Flag, parse
from layertap.config.checks import require, require_counts
from layertap.config.extract import ExtractConfig, local_path
from layertap.errors import UsageError
from layertap.tpu.fleet import Wanted


@dataclass(frozen=True)
class TpuConfig:
    """The flags of every command on a fleet."""

    zones: Annotated[str, Flag(metavar="ZONE,...", default="all zones; required to create workers")] = ""
    """Zones, separated by commas, such as us-central1-a,us-central1-b."""

    name_prefix: Annotated[str, Flag(metavar="NAME")] = "tpu"
    """The name of the fleet. Its TPUs are named NAME-{zone}-{worker id}, and have the name as a
    label."""

    project: Annotated[str | None, Flag(default="$GOOGLE_CLOUD_PROJECT, or that of your credentials")] = None
    """The Google Cloud project."""

    api_endpoint: Annotated[str | None, Flag(metavar="URL", default="Google's")] = None
    """The address of the Cloud TPU API. No credentials are sent to a plain http:// address."""

    json: bool = False
    """Print the result as JSON. Progress goes to standard error."""

    poll_seconds: Annotated[float, Flag(metavar="SECONDS")] = 30.0
    """How long to wait between two checks of the cloud, and at first after a zone had no
    capacity."""

    def __post_init__(self) -> None:
        """Refuse a repeated zone, and polling without a pause; raises UsageError."""
        require(len(set(self.zone_list)) == len(self.zone_list), f"--zones {self.zones}: names a zone twice")
        require(0 < self.poll_seconds < math.inf, f"--poll_seconds must be positive, not {self.poll_seconds}")

    @property
    def zone_list(self) -> tuple[str, ...]:
        """`zones` as a tuple."""
        return tuple(zone.strip() for zone in self.zones.split(",") if zone.strip())


@dataclass(frozen=True)
class ListConfig(TpuConfig):
    """List every TPU of the fleet, and every request for one."""


@dataclass(frozen=True)
class StatusConfig(TpuConfig):
    """Count the workers of the fleet by zone and state."""

    workers_per_zone: int | None = None
    """How many workers each zone should have. The status then shows how many are missing."""

    def __post_init__(self) -> None:
        """Refuse a negative number; raises UsageError."""
        super().__post_init__()
        workers = self.workers_per_zone
        require(workers is None or workers >= 0, f"--workers_per_zone must not be negative, but is {workers}")


@dataclass(frozen=True)
class DeleteConfig(TpuConfig):
    """Delete the fleet, or its part in the given zones, after you confirm."""

    yes: bool = False
    """Do not ask for confirmation."""

    dry_run: bool = False
    """Print what the command would do, but do nothing."""


@dataclass(frozen=True)
class FleetConfig(TpuConfig):
    """The flags of the commands that create missing workers."""

    workers_per_zone: int = 1
    """How many workers each zone should have. Each worker is one TPU of --tpu_type, with all its
    chips."""

    tpu_type: Annotated[str | None, Flag(metavar="TYPE", default="v5litepod-8 in a new fleet")] = None
    """The type of each worker's TPU, such as v5litepod-8 (one machine with 8 chips), v4-8 or
    v6e-8."""

    runtime_version: Annotated[str | None, Flag(metavar="NAME", default="Google's image for the type")] = None
    """The image of the TPU VM."""

    startup: Annotated[str | None, Flag(metavar="FILE")] = None
    """A script that each TPU VM runs at every boot, such as scripts/setup_tpu_worker.sh. Without
    it, the TPUs are idle but cost the same."""

    package: Annotated[str | None, Flag(metavar="URL")] = None
    """What the startup script installs: a wheel (gs:// or https://), or git+https://...@commit."""

    extract_flags: Annotated[str | None, Flag(metavar="FLAGS")] = None
    """The flags of `layertap extract` on each worker, as one string. {worker} stands for the
    worker's id."""

    service_account: Annotated[str | None, Flag(metavar="EMAIL", default="the project's default")] = None
    """The account that the workers use."""

    network: Annotated[str | None, Flag(metavar="NAME", default="the project's default")] = None
    """The network of the workers."""

    subnetwork: Annotated[str | None, Flag(metavar="NAME")] = None
    """The subnetwork of the workers."""

    watch: bool = False
    """Keep running, and replace lost workers, until interrupted."""

    dry_run: bool = False
    """Print what the command would do, but do nothing."""

    def __post_init__(self) -> None:
        """Refuse an impossible fleet; raises UsageError."""
        super().__post_init__()
        require(
            len(self.zone_list) > 0,
            "--zones is missing: give one or several, such as --zones us-central1-a,us-central1-b",
        )
        require_counts(self, "workers_per_zone")
        require(not (self.watch and self.dry_run), "--watch and --dry_run contradict each other")
        require(self.startup is None or self.startup_path.is_file(), f"--startup {self.startup}: no such file")
        if self.extract_flags is not None:
            _check_worker_flags(self.extract_flags, len(self.zone_list) * self.workers_per_zone)

    @property
    def wanted(self) -> Wanted:
        """The fleet as it should be."""
        return Wanted(self.name_prefix, self.zone_list, self.workers_per_zone)

    @property
    def startup_path(self) -> Path:
        """`startup`, with `~` expanded."""
        return local_path(self.startup or "")


@dataclass(frozen=True)
class CreateConfig(FleetConfig):
    """Create missing workers, and replace lost ones."""

    spot: bool = True
    """Use spot TPUs, which are cheaper but can be preempted at any time. --no_spot uses on-demand
    TPUs."""

    queued: bool = False
    """Wait in Google's queue (queued resources), instead of requesting a TPU at once."""

    external_ips: bool = True
    """Give the workers external IP addresses. Without them, the network needs Cloud NAT and Private
    Google Access."""


@dataclass(frozen=True)
class RecreateConfig(FleetConfig):
    """Replace preempted or failed workers with new ones of the same kind."""


def _check_worker_flags(text: str, workers: int) -> None:
    """Parse the flags as the first and the last worker will; raises UsageError if one cannot start.

    It also raises if both would do the same work.
    """
    first, last = (_worker_config(text, worker) for worker in (0, workers - 1))
    claims = first.sharded.sharded_dataset_dir is not None
    require(
        workers == 1 or claims or _reads(first) != _reads(last),
        "--extract_flags: every worker would do the same work. Give each its own share with {worker}: --machine_id"
        f" {{worker}} --total_machines {workers}; or use --sharded_dataset_dir",
    )
    same = first.output_url is not None and first.output_url == last.output_url
    require(
        workers == 1 or claims or not same,
        f"--extract_flags: every worker would write to {first.output_url}. Give each its own place there, as"
        f" --output_dir {first.output_url}/tpu_{{worker}}",
    )


def _worker_config(text: str, worker: int) -> ExtractConfig:
    flags = text.replace("{worker}", str(worker))
    try:
        words = ["--worker_id", str(worker), *shlex.split(flags)]
        return parse(ExtractConfig, words, prog="layertap extract")
    except (UsageError, ValueError) as error:  # from shlex: an unclosed quote
        raise UsageError(f"--extract_flags, for worker {worker}: {error}") from error
    except SystemExit as error:  # tyro has printed the reason
        raise UsageError(f"--extract_flags {flags}: these are not flags of `layertap extract`") from error


def _reads(config: ExtractConfig) -> ExtractConfig:
    """Return the settings that decide a run's work, without its worker and its output."""
    here = ExtractConfig(dataset_path="")
    names = ("output_dir", "checkpoint_dir", "upload", "metrics_port")
    return replace(config, worker_id=0, **{name: getattr(here, name) for name in names})
