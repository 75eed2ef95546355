"""Look, decide and act in a loop, until the fleet is as wanted; with `--watch`, forever.

Two things are remembered between looks. One is which zones are closed, which only saves requests.
The other is the last configuration of each worker's TPU, because a lost TPU is deleted before the
next is created, and may have been the last one to copy. Neither decides what to do. So an
interruption at any point leaves nothing that the next command, here or on another machine, could
misread: Google continues what it has begun, and the labels say whose it is.

A zone is closed for a while after it refused a TPU: no capacity, no quota, no answer. The first
wait is one poll interval, and each further wait is twice as long, up to twenty intervals. A zone
that gives a TPU starts again at one. Waits have no random jitter: creations have fixed names, so
simultaneous clients cannot create a worker twice.

A command stops creating once a worker's TPU that it created or found is being deleted or is gone,
unless it was lost or this command deleted it. Somebody is then deleting the fleet. A TPU created
after `delete` has reported that nothing is left would be billed without anybody knowing. This stops
all creations, not only that worker's, because another TPU may be on its way to a zone where
`delete` no longer looks. Only `--watch` continues, because its purpose is to keep the fleet in any
case.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from layertap.errors import (
    AccessError,
    DeletedError,
    InputError,
    LayertapError,
    NotFoundError,
    QuotaError,
    TpuError,
    UnreachableError,
)
from layertap.tpu.cloud import Cloud, in_parallel
from layertap.tpu.decision import Action, Create, Decision, Delete
from layertap.tpu.fleet import Machine, Member, Observed, Phase

Decide = Callable[[Observed, set[str], set[str]], Decision]
MachineFor = Callable[[Create, Mapping[int, Member]], Machine]
"""Chooses the machine for a worker, given each worker's TPU when it was last seen."""
Say = Callable[[str], None]

_STANDING = (Phase.RUNNING, Phase.COMING, Phase.STOPPED)
_THERE_ALREADY = UnreachableError("a TPU of this name exists already")
_LONGEST_WAIT = 20


class _Closing(NamedTuple):
    """Why a zone refused last time, and until when it gets no requests."""

    reason: LayertapError
    wait: float
    until: float


class Drive:
    """Runs one command on one fleet."""

    def __init__(self, cloud: Cloud, zones: Iterable[str], poll_seconds: float, say: Say) -> None:
        """Look everywhere once, then only at `zones` and the fleet's zones; report with `say`."""
        self.observed = Observed()
        self.deleted: set[int] = set()
        """Workers whose TPU somebody else deleted during this command."""
        self._closings: dict[str, _Closing] = {}
        self._made: set[int] = set()
        self._has_made = False
        self._has_worked = False
        self._last_seen: dict[int, Member] = {}
        self._cloud = cloud
        self._named = set(zones)
        self._seen_in: set[str] = set()
        self._poll = poll_seconds
        self._say = say

    @property
    def reasons(self) -> list[str]:
        """The last reason of each zone that refused."""
        return [str(self._closings[zone].reason) for zone in sorted(self._closings)]

    def look(self) -> Observed:
        """Look once, and report changes since the last look."""
        before = self.observed
        self.observed = self._cloud.observe(self._seen_in or {*self._cloud.zones(), *self._named})
        self._seen_in = {*self._named, *(member.zone for member in self.observed.members)}
        self.deleted |= self._made | {m.worker for m in before.members if m.phase in _STANDING}
        self.deleted -= {m.worker for m in self.observed.members if not m.being_deleted}
        self._made = set()
        self._last_seen |= {member.worker: member for member in self.observed.members}
        for change in _changes(before, self.observed):
            self._say(change)
        return self.observed

    def until_done(self, decide: Decide, machine_for: MachineFor) -> Decision:
        """Act until nothing more can be done now; return the decision that says what is left.

        Requests in Google's queue stay there. Nothing more is created once somebody deletes what
        this command created or found.
        """
        while True:
            now = self._decide(decide)
            if self.deleted:
                now = now.without_creations()
            if now.actions:
                self._act(now.actions, machine_for)
            elif any(_on_the_way(member) for member in self.observed.members):
                time.sleep(self._poll)
            else:
                return now

    def for_good(self, decide: Decide, machine_for: MachineFor) -> None:
        """Keep the fleet complete until interrupted, or until a permanent error."""
        told: Decision | None = None
        while True:
            try:
                told = self._look_and_act(decide, machine_for, told)
                self._has_worked = True
            except (TpuError, InputError) as error:
                if isinstance(error, InputError) and not self._may_pass(error):
                    raise
                self._say(f"{error}; looking again in {self._poll:g} s")
                time.sleep(self._poll)
                self._log_in_again(error)

    def _look_and_act(self, decide: Decide, machine_for: MachineFor, told: Decision | None) -> Decision:
        now = self._decide(decide)
        if now != told:
            self._tell(now)
        if now.actions:
            self._act(now.actions, machine_for)
        else:
            clock = time.monotonic()
            openings = [self._closings[zone].until - clock for zone in self._closed(clock)]
            time.sleep(min([self._poll, *openings]))
        return now

    def _may_pass(self, error: InputError) -> bool:
        """Return whether a watch continues: logins are renewed, and Google accepted the flags
        before.
        """
        if isinstance(error, AccessError | NotFoundError):
            return self._has_worked
        return self._has_made

    def _log_in_again(self, error: LayertapError) -> None:
        if isinstance(error, AccessError):
            try:
                self._cloud.reconnect()
            except (TpuError, InputError) as still:
                self._say(str(still))

    def _decide(self, decide: Decide) -> Decision:
        """Look and decide; workers wait if a quota is used up, and move from other closed zones."""
        observed = self.look()
        closed = self._closed(time.monotonic())
        full = {zone for zone in closed if isinstance(self._closings[zone].reason, QuotaError)}
        return decide(observed, closed - full, full)

    def _closed(self, now: float) -> set[str]:
        return {zone for zone, closing in self._closings.items() if closing.until > now}

    def _act(self, actions: Iterable[Action], machine_for: MachineFor) -> None:
        """Do all actions in parallel, then raise the first error that only the user can fix."""
        work = [(it, machine_for(it, self._last_seen) if isinstance(it, Create) else None) for it in actions]
        outcomes = in_parallel(lambda pair: self._try(*pair), work)
        done = [(action, outcome) for (action, _), outcome in zip(work, outcomes, strict=True)]
        created = [(action, outcome) for action, outcome in done if isinstance(action, Create)]
        self.deleted |= {action.worker for action, outcome in created if isinstance(outcome, DeletedError)}
        self._made = {action.worker for action, outcome in created if outcome is None}
        self._has_made = self._has_made or bool(self._made)
        self._open_and_close([(action.zone, outcome) for action, outcome in created])
        for outcome in outcomes:
            if isinstance(outcome, InputError):
                raise outcome
        if any(_asks_for_a_pause(action, outcome) for action, outcome in done):
            time.sleep(self._poll)

    def _try(self, action: Action, machine: Machine | None) -> LayertapError | None:
        self._say(str(action))
        try:
            if isinstance(action, Delete):
                self._cloud.delete(action.member)
            elif machine is not None and not self._cloud.create(action, machine):
                self._say(f"{action.name} exists already; looking again")
                return _THERE_ALREADY
        except (TpuError, InputError) as error:
            self._say(str(error))
            return error
        return None

    def _open_and_close(self, created: list[tuple[str, LayertapError | None]]) -> None:
        now = time.monotonic()
        refused = {zone: error for zone, error in created if error and not _says_nothing_of_the_zone(error)}
        for zone, reason in refused.items():
            before = self._closings.get(zone)
            wait = min(2 * before.wait, _LONGEST_WAIT * self._poll) if before else self._poll
            if before is None or before.until <= now:  # otherwise the request was sent before it closed
                self._closings[zone] = _Closing(reason, wait, now + wait)
        for zone in {zone for zone, error in created if error is None} - refused.keys():
            self._closings.pop(zone, None)

    def _tell(self, now: Decision) -> None:
        for sentence in now.blocked:
            self._say(sentence)
        if now.waiting:
            self._say(f"{now.waiting} workers wait for a zone to open again")


def _changes(before: Observed, after: Observed) -> list[str]:
    """Return one line for each member that appeared, disappeared or changed its state."""
    old = {(member.zone, member.name): member for member in before.members}
    new = {(member.zone, member.name): member for member in after.members}
    lines = [_describe(member) for place, member in new.items() if _state(old.get(place)) != _state(member)]
    return lines + [f"{member.name}, worker {member.worker}: gone" for place, member in old.items() if place not in new]


def _asks_for_a_pause(action: Action, outcome: LayertapError | None) -> bool:
    """Return whether the action would be retried at once, because no zone is closed after it."""
    return outcome is not None and (isinstance(action, Delete) or _says_nothing_of_the_zone(outcome))


def _says_nothing_of_the_zone(outcome: LayertapError | None) -> bool:
    return outcome is _THERE_ALREADY or isinstance(outcome, DeletedError | AccessError)


def _on_the_way(member: Member) -> bool:
    return member.phase in (Phase.COMING, Phase.LEAVING) and not member.queueing


def _state(member: Member | None) -> tuple[str, str] | None:
    return (member.state, member.note) if member else None


def _describe(member: Member) -> str:
    note = f" ({member.note})" if member.note else ""
    return f"{member.name}, worker {member.worker}: {member.state}{note}"
