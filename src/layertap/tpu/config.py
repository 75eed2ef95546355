"""The flags of `layertap tpu ...`, as in `layertap.config`: one field, one flag, one sentence.

Here and not there because nothing else reads them. Neither Google's client nor JAX is imported, so that `--help` is
quick and works without the `tpu-ops` extra.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from layertap.config import local_path
from layertap.errors import UsageError
from layertap.tpu.fleet import Wanted, check_name


@dataclass(frozen=True)
class TpuConfig:
    """What every command about a fleet needs."""

    zones: str = ""
    """Zones, separated by commas, as us-central1-a,us-central1-b; none stand for all where that makes sense."""

    name_prefix: str = "tpu"
    """The fleet's name: its TPUs are called {name_prefix}-{zone}-{worker id} and bear it as a label."""

    project: str | None = None
    """The Google Cloud project; None stands for GOOGLE_CLOUD_PROJECT, else the project of your credentials."""

    api_endpoint: str | None = None
    """Where the Cloud TPU API is; None stands for Google's. A plain http:// address gets no credentials."""

    json: bool = False
    """Print the result as JSON; what happens on the way goes to the standard error output."""

    poll_seconds: float = 30.0
    """Seconds between two looks at the cloud, and the first wait after a zone had no capacity."""

    def __post_init__(self) -> None:
        """Refuse names that Google would refuse; raises UsageError."""
        check_name(self.name_prefix, "--name_prefix")
        for zone in self.zone_list:
            check_name(zone, "--zones")
        if len(set(self.zone_list)) < len(self.zone_list):
            raise UsageError(f"--zones {self.zones}: names a zone twice")
        if not 0 < self.poll_seconds < math.inf:
            raise UsageError(f"--poll_seconds must be positive, not {self.poll_seconds}")

    @property
    def zone_list(self) -> tuple[str, ...]:
        """`zones`, taken apart."""
        return tuple(zone.strip() for zone in self.zones.split(",") if zone.strip())


@dataclass(frozen=True)
class ListConfig(TpuConfig):
    """List every TPU and request of the fleet."""


@dataclass(frozen=True)
class StatusConfig(TpuConfig):
    """Count the fleet's workers, zone by zone, by what they are doing."""

    workers_per_zone: int | None = None
    """How many there should be; the status then says how many are missing."""

    def __post_init__(self) -> None:
        """Refuse a negative number; raises UsageError."""
        super().__post_init__()
        if self.workers_per_zone is not None and self.workers_per_zone < 0:
            raise UsageError(f"--workers_per_zone must not be negative, but is {self.workers_per_zone}")


@dataclass(frozen=True)
class DeleteConfig(TpuConfig):
    """Delete the fleet, or what stands or counts in the given zones, after asking."""

    yes: bool = False
    """Do not ask."""

    dry_run: bool = False
    """Print what would be done, and do nothing."""


@dataclass(frozen=True)
class FleetConfig(TpuConfig):
    """What the commands share that bring a fleet to strength."""

    workers_per_zone: int = 1
    """How many workers count in each zone."""

    tpu_type: str | None = None
    """The accelerator type, as v5litepod-8, v4-8 or v6e-8; None stands for v5litepod-8 in a new fleet."""

    runtime_version: str | None = None
    """The TPU VM's image; None stands for the one that Google names for the type."""

    startup: str | None = None
    """A script that each TPU VM runs whenever it boots, such as scripts/setup_tpu_worker.sh."""

    package: str | None = None
    """What the set-up script installs: a wheel (gs:// or https://) or git+https://...@commit."""

    extract_flags: str | None = None
    """The flags of `layertap extract` on each worker, in one string; {worker} stands for the worker's id."""

    service_account: str | None = None
    """The account the workers act as; None stands for the project's default one."""

    network: str | None = None
    """The workers' network; None stands for the project's default one."""

    subnetwork: str | None = None
    """The workers' subnetwork."""

    watch: bool = False
    """Stay, and keep the fleet at strength until interrupted."""

    dry_run: bool = False
    """Print what would be done, and do nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a fleet; raises UsageError."""
        super().__post_init__()
        if not self.zone_list:
            raise UsageError("--zones is missing: give one or several, as --zones us-central1-a,us-central1-b")
        if self.workers_per_zone < 1:
            raise UsageError(f"--workers_per_zone must be at least 1, not {self.workers_per_zone}")
        if self.watch and self.dry_run:
            raise UsageError("--watch and --dry_run contradict each other")
        if self.startup is not None and not self.startup_path.is_file():
            raise UsageError(f"--startup {self.startup}: no such file")
        _ = self.wanted

    @property
    def wanted(self) -> Wanted:
        """The fleet as it should be; raises UsageError where its names would be refused."""
        return Wanted(self.name_prefix, self.zone_list, self.workers_per_zone)

    @property
    def startup_path(self) -> Path:
        """`startup`, with `~` expanded."""
        return local_path(self.startup or "")


@dataclass(frozen=True)
class CreateConfig(FleetConfig):
    """Bring a fleet to strength: make what is missing, replace what was lost, leave what runs."""

    spot: bool = True
    """Spot TPUs, which cost less and can be taken away at any time; otherwise on-demand ones."""

    queued: bool = False
    """Stand in Google's queue (queued resources) instead of asking for a TPU at once."""

    external_ips: bool = True
    """Give the workers external addresses; without, their network needs Cloud NAT and Private Google Access."""


@dataclass(frozen=True)
class RecreateConfig(FleetConfig):
    """Replace what was preempted, terminated or failed, made as it was before; flags given here change that."""
