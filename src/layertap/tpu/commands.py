"""The commands `layertap tpu create | status | recreate-preempted | delete | list`, each returning its exit status.

What happens on the way goes to the standard error output, the result to the standard output. Exit status: 0 as wanted,
1 Google had no room (or no answer), 2 only the user can help.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from layertap.errors import AccessError, InputError, TpuError, UsageError
from layertap.tpu.cloud import connect
from layertap.tpu.config import (
    CreateConfig,
    DeleteConfig,
    FleetConfig,
    ListConfig,
    RecreateConfig,
    StatusConfig,
    TpuConfig,
)
from layertap.tpu.drive import Drive, MachineFor, stamped
from layertap.tpu.fleet import Machine, Member, Observed
from layertap.tpu.machine import altered, like, new_machine
from layertap.tpu.plan import Create, Plan, plan, plan_deletion
from layertap.tpu.preview import preview_empty, print_plan, say_cost
from layertap.tpu.report import as_json, members_table, zones_table


def create(config: CreateConfig) -> int:
    """Bring the fleet to strength with machines as the flags say."""
    machine = new_machine(config)
    if config.dry_run:
        return _preview(config, machine)
    return _bring_to_strength(config, lambda _action, _last_seen: machine)


def _preview(config: CreateConfig, machine: Machine) -> int:
    """Print what would be made; of an empty project where there are no credentials, or no project is named."""
    with ExitStack() as stack:
        try:
            drive = stack.enter_context(_driving(config))
        except (AccessError, UsageError) as error:  # nothing has been asked of Cloud TPU yet
            return preview_empty(config, str(error))
        now = plan(config.wanted, drive.look())
    _print_plan(config, now)
    say_cost(now, machine)
    return 0


def recreate(config: RecreateConfig) -> int:
    """Bring the fleet to strength with machines as they were."""

    def as_it_was(action: Create, last_seen: Mapping[int, Member]) -> Machine:
        machine = like(action, last_seen)
        if machine is None:
            raise UsageError(f"there is no TPU of the fleet {config.name_prefix!r} to copy; make one with `create`")
        return altered(machine, config)

    return _bring_to_strength(config, as_it_was)


def delete(config: DeleteConfig) -> int:
    """Delete the fleet, or its part in the given zones."""
    zones = set(config.zone_list) or None
    with _driving(config) as drive:
        observed = drive.look()
        now = plan_deletion(observed, zones)
        if config.dry_run:
            return _print_plan(config, now)
        if now.actions and not config.yes:
            _confirm([action.member for action in now.actions if not isinstance(action, Create)])

        def gone(seen: Observed) -> Observed:
            return Observed(tuple(m for m in seen.members if zones is None or m.zone in zones or m.home in zones))

        drive.until_done(lambda seen, _dry, _full: plan_deletion(gone(seen), None), _never)
        where = config.zones or "any zone"
        print(
            json.dumps(as_json(config.name_prefix, gone(drive.observed).members))
            if config.json
            else f"nothing of the fleet {config.name_prefix!r} is left in {where}"
        )
    return 0


def status(config: StatusConfig) -> int:
    """Count the workers, zone by zone."""
    with connect(config) as cloud:
        observed = cloud.observe({*cloud.zones(), *config.zone_list})
    zones = config.zone_list or tuple(sorted({member.home for member in observed.members}))
    members = [member for member in observed.members if member.home in zones or member.zone in zones]
    if config.json:
        print(json.dumps(as_json(config.name_prefix, members, zones=list(zones)), indent=1))
    else:
        print(zones_table(observed, zones, config.workers_per_zone))
    return 0


def list_members(config: ListConfig) -> int:
    """List every TPU and request, zone by zone."""
    with connect(config) as cloud:
        observed = cloud.observe({*cloud.zones(), *config.zone_list})
    members = [member for member in observed.members if not config.zone_list or member.zone in config.zone_list]
    print(json.dumps(as_json(config.name_prefix, members), indent=1) if config.json else members_table(members))
    return 0


def _bring_to_strength(config: FleetConfig, machine_for: MachineFor) -> int:
    decide = partial(plan, config.wanted)
    with _driving(config) as drive:
        if config.dry_run:
            return _print_plan(config, decide(drive.look()))
        if config.watch:
            drive.for_good(decide, machine_for)
        left = drive.until_done(decide, machine_for)
        observed, reasons = drive.observed, [*left.blocked, *drive.closings.reasons]
    if config.json:
        print(json.dumps(as_json(config.name_prefix, observed.members, zones=list(config.zone_list)), indent=1))
    else:
        print(zones_table(observed, config.zone_list, config.workers_per_zone))
    if left.blocked:
        raise InputError("; ".join(left.blocked))
    if left.withheld:
        raise TpuError(
            f"workers that are missing and were not made: {left.withheld}, because somebody deletes this fleet: worker"
            f" {', '.join(map(str, sorted(drive.deleted)))} was deleted under this command. Call it again to make them"
        )
    if left.waiting:
        raise TpuError(
            f"workers that could not be made: {left.waiting}. {'; '.join(reasons)}."
            " Call again later, stay with --watch, or stand in Google's queue with create --queued"
        )
    return 0


@contextmanager
def _driving(config: TpuConfig) -> Iterator[Drive]:
    with connect(config) as cloud:
        try:
            yield Drive(cloud, config.zone_list, config.poll_seconds, _say)
        except KeyboardInterrupt:
            _say("what Cloud TPU has accepted goes on there; the same command goes on from what it then finds")
            raise


def _confirm(members: Iterable[Member]) -> None:
    print(members_table(members), file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("deleting needs a yes, and nobody is there to be asked: give --yes")
    print("Delete all of these? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was deleted")


def _print_plan(config: TpuConfig, now: Plan) -> int:
    print_plan(config, now)
    for sentence in now.blocked:
        _say(sentence)
    return 0


def _never(_action: Create, _last_seen: Mapping[int, Member]) -> Machine:
    raise AssertionError("a deletion creates nothing")


def _say(text: str) -> None:
    # The line with its end, in one write: many threads have something to say.
    print(f"{stamped(text)}\n", end="", file=sys.stderr, flush=True)
