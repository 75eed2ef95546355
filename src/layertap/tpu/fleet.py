"""Define a fleet: workers with fixed ids, on TPUs that come and go; print it as a table or JSON.

A fleet is named by `--name_prefix`. The name is a label on each of its TPUs, and nothing without
that label belongs to the fleet. Each worker has an id, counted from 0 over all zones of the fleet,
and a home zone, where it counts. Both are labels too, so the cloud itself is the only record, and
any machine can continue where another was interrupted.

A worker's TPU is named `{prefix}-{zone}-{id}`. The id in the name is the worker's, not a number
within the zone. So a worker that moves to another zone for lack of capacity never collides with a
worker of that zone. Two simultaneous commands ask for the same names, and the cloud grants each
name once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

FLEET_LABEL = "layertap-fleet"
WORKER_LABEL = "layertap-worker"
HOME_LABEL = "layertap-home"
WORKER_METADATA = "layertap-worker-id"

_QUEUED = "queued"


class Phase(Enum):
    """The state of a TPU for its fleet; each covers several states of the API."""

    RUNNING = "running"
    COMING = "coming"
    """Being created, queued or repaired: it will run without further action."""
    STOPPED = "stopped"
    """Somebody stopped it. It keeps its place, and is neither started nor deleted."""
    LEAVING = "leaving"
    """Being deleted or suspended."""
    LOST = "lost"
    """Preempted, terminated or failed: it will never run again."""


_COUNTED = (Phase.COMING, Phase.LOST, Phase.LEAVING, Phase.STOPPED)


@dataclass(frozen=True)
class Machine:
    """The configuration of a TPU, without its worker."""

    tpu_type: str
    runtime_version: str
    spot: bool = True
    queued: bool = False
    service_account: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    external_ips: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """A TPU of the fleet, or a request for one, as last seen."""

    name: str
    zone: str
    worker: int
    home: str
    """The zone where it counts; the TPU is elsewhere if home had no capacity."""
    phase: Phase
    state: str
    """The state in the API, such as PREEMPTED or WAITING_FOR_RESOURCES."""
    machine: Machine
    request: str | None = None
    """The id of its queued resource."""
    has_node: bool = True
    note: str = ""
    """What the API says about its health, or why it failed."""

    @property
    def queueing(self) -> bool:
        """Whether it is a request that has no TPU yet; that can take days."""
        return self.phase is Phase.COMING and not self.has_node

    @property
    def does(self) -> str:
        """Its phase in a word; "queued" while it waits in Google's queue."""
        return _QUEUED if self.queueing else self.phase.value

    @property
    def being_deleted(self) -> bool:
        """Whether somebody is deleting it; Google itself never deletes a preempted TPU."""
        return self.state == "DELETING"


@dataclass(frozen=True)
class Observed:
    """One look at the cloud."""

    members: tuple[Member, ...] = ()
    foreign: frozenset[tuple[str, str]] = frozenset()
    """(zone, name) of every TPU and request without the labels of this fleet."""

    def of_home(self, zone: str) -> list[Member]:
        """Return the members that count in this zone."""
        return [member for member in self.members if member.home == zone]


@dataclass(frozen=True)
class Wanted:
    """The wanted fleet: this many workers in each of these zones."""

    prefix: str
    zones: tuple[str, ...]
    workers_per_zone: int


def worker_name(prefix: str, zone: str, worker: int) -> str:
    """Return the name of a worker's TPU and queued resource in a zone."""
    return f"{prefix}-{zone}-{worker}"


def identity(prefix: str, worker: int, home: str) -> dict[str, str]:
    """Return the labels that make a TPU this worker of this fleet."""
    return {FLEET_LABEL: prefix, WORKER_LABEL: str(worker), HOME_LABEL: home}


def read_identity(labels: Mapping[str, str], prefix: str, zone: str) -> tuple[int, str] | None:
    """Return worker id and home zone of a TPU with these labels; None if it is not of the fleet."""
    worker = labels.get(WORKER_LABEL, "")
    if labels.get(FLEET_LABEL) != prefix or not (worker.isascii() and worker.isdecimal()):
        return None
    return int(worker), labels.get(HOME_LABEL, zone)


def members_table(members: Iterable[Member]) -> str:
    """Return a table with one line per member."""
    rows = [
        (str(m.worker), m.name, m.zone, m.state, m.machine.tpu_type, "spot" if m.machine.spot else "on-demand", m.note)
        for m in members
    ]
    return _table(("worker", "name", "zone", "state", "type", "price", "note"), rows)


def zones_table(observed: Observed, zones: Sequence[str], wanted: int | None) -> str:
    """Return a table with one line per zone: workers by phase, and how many of `wanted` are
    missing.
    """
    words = [Phase.RUNNING.value, _QUEUED, *(phase.value for phase in _COUNTED)]
    rows = []
    for zone in zones:
        members = observed.of_home(zone)
        counts = Counter(member.does for member in members)
        kept = sum(member.phase is not Phase.LOST for member in members)
        missing = () if wanted is None else (max(wanted - kept, 0),)
        rows.append((zone, *(str(number) for number in (*(counts[word] for word in words), *missing))))
    return _table(("zone", *words, *(() if wanted is None else ("missing",))), rows)


def as_json(prefix: str, members: Iterable[Member], **more: list[str]) -> dict[str, Any]:
    """Return the fleet as plain values."""
    listed = list(members)
    counts = Counter(member.does for member in listed)
    return {"fleet": prefix, **more, "counts": dict(counts), "members": [_plain(member) for member in listed]}


def _plain(member: Member) -> dict[str, Any]:
    return {
        "worker": member.worker,
        "name": member.name,
        "zone": member.zone,
        "home": member.home,
        "phase": member.does,
        "state": member.state,
        "tpu_type": member.machine.tpu_type,
        "runtime_version": member.machine.runtime_version,
        "spot": member.machine.spot,
        "queued_resource": member.request,
        "note": member.note,
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
