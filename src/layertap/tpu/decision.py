"""Decide what to do to turn the observed fleet into the wanted one: a pure function.

It guarantees, and tests/tpu/test_decision.py proves on random fleets:

- If you act and decide again until nothing is left to do, each zone has `workers_per_zone` workers.
- No two TPUs keep the same worker id, and a lost worker's id goes to its replacement. - Ids are
dense: a new worker gets the lowest free id. - Actions name only members, and running members only
if a worker runs twice.

A lost TPU is deleted in the same action that replaces it, and only if there is a place for the
replacement, because the TPU's label stores the id. If an interruption separates the two (Ctrl-C),
the id is free, and is assigned next as the lowest free id. If two zones are repaired at once, they
may swap such ids. That is harmless, because the bucket keeps a worker's output under its id, not
its zone.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import count

from layertap.tpu.fleet import Member, Observed, Phase, Wanted, worker_name


@dataclass(frozen=True)
class Create:
    """Create a worker's TPU, after deleting the lost one that it replaces."""

    zone: str
    worker: int
    home: str
    name: str
    replaces: Member | None = None

    def __str__(self) -> str:
        """Return the action as a log line."""
        away = "" if self.zone == self.home else f", away from home {self.home}"
        after = f", after deleting {self.replaces.name} ({self.replaces.state})" if self.replaces else ""
        return f"create {self.name} for worker {self.worker}{away}{after}"


@dataclass(frozen=True)
class Delete:
    """Delete a member for good."""

    member: Member
    reason: str

    def __str__(self) -> str:
        """Return the action as a log line."""
        return f"delete {self.member.name} ({self.member.state}), worker {self.member.worker}: {self.reason}"


Action = Create | Delete


@dataclass(frozen=True)
class Decision:
    """What to do now, and what cannot be done now."""

    actions: tuple[Action, ...] = ()
    blocked: tuple[str, ...] = ()
    """A sentence for each worker whose name belongs to a foreign TPU: only the user can fix it."""
    waiting: int = 0
    """How many wanted workers wait because their zones are closed."""
    withheld: int = 0
    """How many wanted workers are not created because somebody is deleting the fleet."""

    def without_creations(self) -> "Decision":
        """Return the decision without creations."""
        kept = tuple(action for action in self.actions if isinstance(action, Delete))
        return replace(self, actions=kept, withheld=len(self.actions) - len(kept))


def decide(wanted: Wanted, observed: Observed, dry: Set[str] = frozenset(), full: Set[str] = frozenset()) -> Decision:
    """Decide what brings `observed` closer to `wanted`.

    A zone in `dry` has no capacity now, so its workers go to the next zone of the list. A zone in
    `full` has used up the project's quota, so its workers wait: moving them would use a quota meant
    for others.
    """
    duplicates = list(_running_twice(wanted, observed))
    actions: list[Action] = [Delete(member, "this worker runs twice") for member in duplicates]
    blocked: list[str] = []
    waiting = 0
    standing = [m for m in observed.members if m.phase is not Phase.LOST and m not in duplicates]
    taken = {member.worker for member in standing}
    free_ids = _free_ids(observed.members)
    for home in wanted.zones:
        missing = max(wanted.workers_per_zone - sum(member.home == home for member in standing), 0)
        replaced, needless = _split_lost(observed.of_home(home), taken, missing)
        actions += [Delete(member, "its place is filled") for member in needless]
        for old in replaced + [None] * (missing - len(replaced)):
            worker = old.worker if old else next(free_ids)
            taken.add(worker)
            zone = _place(wanted, observed, worker, home, dry, full)
            if (home, worker_name(wanted.prefix, home, worker)) in observed.foreign:
                blocked.append(_name_is_taken(wanted.prefix, home, worker))
            elif zone is None:
                waiting += 1
            else:
                actions.append(Create(zone, worker, home, worker_name(wanted.prefix, zone, worker), old))
    return Decision(tuple(actions), tuple(blocked), waiting)


def decide_deletion(observed: Observed, zones: Set[str] | None) -> Decision:
    """Delete every member that is in `zones` or counts there (None: all members)."""
    chosen = (m for m in observed.members if zones is None or m.zone in zones or m.home in zones)
    return Decision(tuple(Delete(m, "asked for") for m in chosen if m.phase is not Phase.LEAVING))


def _place(wanted: Wanted, observed: Observed, worker: int, home: str, dry: Set[str], full: Set[str]) -> str | None:
    """Return the first open zone, from home, where the worker's name is free; None if it must
    wait.
    """
    if home in full:
        return None
    start = wanted.zones.index(home)
    for zone in wanted.zones[start:] + wanted.zones[:start]:
        taken = (zone, worker_name(wanted.prefix, zone, worker)) in observed.foreign
        if zone not in dry and zone not in full and not taken:
            return zone
    return None


def _running_twice(wanted: Wanted, observed: Observed) -> Iterator[Member]:
    """Yield members whose worker has another TPU that is better to keep."""
    order = [Phase.RUNNING, Phase.COMING, Phase.STOPPED]
    kept: set[int] = set()
    for member in sorted(
        (m for m in observed.members if m.phase in order),
        # A member of a zone that was not named must not be deleted now, so keep it first.
        key=lambda m: (m.home in wanted.zones, order.index(m.phase), m.zone != m.home, m.name),
    ):
        if member.worker in kept and member.home in wanted.zones:
            yield member
        kept.add(member.worker)


def _split_lost(members: list[Member], taken: Set[int], missing: int) -> tuple[list[Member | None], list[Member]]:
    """Return the lost members to replace, lowest id first, and those that need no replacement."""
    lost = sorted((m for m in members if m.phase is Phase.LOST), key=lambda m: (m.worker, m.name))
    first_of_id = {member.worker: member for member in reversed(lost)}
    replaced = [m for m in lost if m is first_of_id[m.worker] and m.worker not in taken][:missing]
    return [*replaced], [m for m in lost if m not in replaced]


def _free_ids(members: Iterable[Member]) -> Iterator[int]:
    used = {member.worker for member in members}
    return (worker for worker in count() if worker not in used)


def _name_is_taken(prefix: str, zone: str, worker: int) -> str:
    return (
        f"worker {worker} cannot be created: {zone} has a TPU named {worker_name(prefix, zone, worker)} without this"
        " fleet's labels, which is left alone. Choose another --name_prefix, or delete that TPU yourself"
    )
