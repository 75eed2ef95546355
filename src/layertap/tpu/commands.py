"""The commands `layertap tpu create | status | recreate-preempted | delete | list`, each returning
its exit status.

What happens on the way goes to the standard error output, the result to the standard output. Exit
status: 0 as wanted, 1 Google had no room (or no answer), 2 only the user can help.

A newcomer tries `create --dry_run` first, before there is a project, credentials, or Google's
client. Nothing can be looked at then, so what is printed is decided for an empty project, and says
so. Google's client is therefore imported only when a command connects.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from layertap.core.extras import install_command
from layertap.errors import AccessError, InputError, TpuError, UsageError
from layertap.tpu.config import (
    CreateConfig,
    DeleteConfig,
    FleetConfig,
    ListConfig,
    RecreateConfig,
    StatusConfig,
    TpuConfig,
)
from layertap.tpu.decision import Create, Decision, decide, decide_deletion
from layertap.tpu.fleet import Machine, Member, Observed, as_json, members_table, zones_table
from layertap.tpu.machine import altered, cost, like, new_machine

if TYPE_CHECKING:
    from layertap.tpu.cloud import Cloud
    from layertap.tpu.drive import Drive, MachineFor


def create(config: CreateConfig) -> int:
    """Bring the fleet to strength with machines as the flags say."""
    machine = new_machine(config)
    if config.dry_run:
        return _preview(config, machine)
    return _bring_to_strength(config, lambda _action, _last_seen: machine)


def _preview(config: CreateConfig, machine: Machine) -> int:
    """Print what would be made; in an empty project where this one cannot be looked at."""
    with ExitStack() as stack:
        try:
            observed = stack.enter_context(_driving(config)).look
        except (AccessError, UsageError) as error:  # nothing has been asked of Cloud TPU yet
            print(f"{error}\nIn a project that has no TPUs yet, the command would:", file=sys.stderr)
            observed = Observed
        now = decide(config.wanted, observed())
    _print_actions(config, now)
    if count := sum(isinstance(action, Create) for action in now.actions):
        print(cost(machine, count), file=sys.stderr)
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
        now = decide_deletion(drive.look(), zones)
        if config.dry_run:
            return _print_actions(config, now)
        if now.actions and not config.yes:
            _confirm([action.member for action in now.actions if not isinstance(action, Create)])

        def chosen(seen: Observed) -> Observed:
            return Observed(tuple(m for m in seen.members if zones is None or m.zone in zones or m.home in zones))

        drive.until_done(lambda seen, _dry, _full: decide_deletion(chosen(seen), None), _never)
        where = config.zones or "any zone"
        print(
            json.dumps(as_json(config.name_prefix, chosen(drive.observed).members))
            if config.json
            else f"nothing of the fleet {config.name_prefix!r} is left in {where}"
        )
    return 0


def status(config: StatusConfig) -> int:
    """Count the workers, zone by zone."""
    observed = _observe(config)
    zones = config.zone_list or tuple(sorted({member.home for member in observed.members}))
    _print_zones(config, observed, zones, [m for m in observed.members if m.home in zones or m.zone in zones])
    return 0


def list_members(config: ListConfig) -> int:
    """List every TPU and request, zone by zone."""
    members = [m for m in _observe(config).members if not config.zone_list or m.zone in config.zone_list]
    print(json.dumps(as_json(config.name_prefix, members), indent=1) if config.json else members_table(members))
    return 0


def _bring_to_strength(config: FleetConfig, machine_for: "MachineFor") -> int:
    to_strength = partial(decide, config.wanted)
    with _driving(config) as drive:
        if config.dry_run:
            return _print_actions(config, to_strength(drive.look()))
        if config.watch:
            drive.for_good(to_strength, machine_for)
        left = drive.until_done(to_strength, machine_for)
        observed, reasons = drive.observed, [*left.blocked, *drive.reasons]
    _print_zones(config, observed, config.zone_list, observed.members)
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
def _connected(config: TpuConfig) -> "Iterator[Cloud]":
    try:
        from layertap.tpu.cloud import Cloud
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("google", "requests"):
            raise
        raise UsageError(f"no module {error.name}: managing TPUs needs {install_command('tpu-ops')}") from error
    with closing(Cloud(config)) as cloud:
        yield cloud


@contextmanager
def _driving(config: TpuConfig) -> "Iterator[Drive]":
    with _connected(config) as cloud:
        from layertap.tpu.drive import Drive

        try:
            yield Drive(cloud, config.zone_list, config.poll_seconds, _say)
        except KeyboardInterrupt:
            _say("what Cloud TPU has accepted goes on there; the same command goes on from what it then finds")
            raise


def _observe(config: TpuConfig) -> Observed:
    """One look at all zones."""
    with _connected(config) as cloud:
        return cloud.observe({*cloud.zones(), *config.zone_list})


def _confirm(members: Iterable[Member]) -> None:
    print(members_table(members), file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("deleting needs a yes, and nobody is there to be asked: give --yes")
    print("Delete all of these? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was deleted")


def _print_zones(
    config: StatusConfig | FleetConfig, observed: Observed, zones: tuple[str, ...], members: Iterable[Member]
) -> None:
    if config.json:
        print(json.dumps(as_json(config.name_prefix, members, zones=list(zones)), indent=1))
    else:
        print(zones_table(observed, zones, config.workers_per_zone))


def _print_actions(config: TpuConfig, now: Decision) -> int:
    """Print the actions, one a line or as JSON, and what stands in the way of others."""
    actions = [str(action) for action in now.actions]
    if config.json:
        print(json.dumps({"fleet": config.name_prefix, "actions": actions}))
    else:
        print("\n".join(actions) or "nothing to do")
    for sentence in now.blocked:
        _say(sentence)
    return 0


def _never(_action: Create, _last_seen: Mapping[int, Member]) -> Machine:
    raise AssertionError("a deletion creates nothing")


def _say(text: str) -> None:
    # The line with its end, in one write: many threads have something to say.
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z  {text}\n", end="", file=sys.stderr, flush=True)
