"""A fleet as a table for people and as JSON for scripts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from layertap.tpu.fleet import Member, Observed, Phase

_COUNTED = (Phase.RUNNING, Phase.COMING, Phase.LOST, Phase.LEAVING, Phase.STOPPED)
_QUEUED = "queued"


def members_table(members: Iterable[Member]) -> str:
    """One line for each member."""
    rows = [(str(m.worker), m.name, m.zone, m.state, m.machine.tpu_type, _price(m), m.note) for m in members]
    return _table(("worker", "name", "zone", "state", "type", "price", "note"), rows)


def zones_table(observed: Observed, zones: Sequence[str], wanted: int | None) -> str:
    """One line for each zone: how many workers count there, and what they are doing."""
    words = [_QUEUED if phase is None else phase.value for phase in (Phase.RUNNING, None, *_COUNTED[1:])]
    rows = []
    for zone in zones:
        counts = count(observed.of_home(zone))
        rows.append((zone, *(str(counts[word]) for word in words), *missing(observed, zone, wanted)))
    return _table(("zone", *words, *(() if wanted is None else ("missing",))), rows)


def count(members: Iterable[Member]) -> Counter[str]:
    """How many members do what; those that only stand in Google's queue apart from those being made."""
    return Counter(_QUEUED if member.queueing else member.phase.value for member in members)


def missing(observed: Observed, zone: str, wanted: int | None) -> tuple[str, ...]:
    """How many workers the zone lacks, where it is known how many it should have."""
    if wanted is None:
        return ()
    standing = sum(member.phase is not Phase.LOST for member in observed.of_home(zone))
    return (str(max(wanted - standing, 0)),)


def as_json(prefix: str, members: Iterable[Member], **more: list[str]) -> dict[str, Any]:
    """The fleet as plain values."""
    listed = list(members)
    return {"fleet": prefix, **more, "counts": dict(count(listed)), "members": [_plain(member) for member in listed]}


def _plain(member: Member) -> dict[str, Any]:
    return {
        "worker": member.worker,
        "name": member.name,
        "zone": member.zone,
        "home": member.home,
        "phase": _QUEUED if member.queueing else member.phase.value,
        "state": member.state,
        "tpu_type": member.machine.tpu_type,
        "runtime_version": member.machine.runtime_version,
        "spot": member.machine.spot,
        "queued_resource": member.request,
        "note": member.note,
    }


def _price(member: Member) -> str:
    return "spot" if member.machine.spot else "on-demand"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
