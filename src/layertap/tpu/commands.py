"""The commands `layertap tpu create | status | recreate-preempted | delete | list`.

Each returns its exit status: 0 for success, 1 if Google had no capacity (or no answer), 2 if only
the user can fix it. Progress goes to standard error, the result to standard output.

A newcomer tries `create --dry_run` first, without a project, credentials or Google's client. Then
the command cannot look at the project, so it plans for an empty one, and says so. This is why
Google's client is imported only when a command connects.
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
from layertap.tpu.machine import alter, choose_machine, describe_cost, new_machine

if TYPE_CHECKING:
    from layertap.tpu.cloud import Cloud
    from layertap.tpu.drive import Drive, MachineFor


def create(config: CreateConfig) -> int:
    """Create missing workers with the machines that the flags describe."""
    machine = new_machine(config)
    if config.dry_run:
        return _preview(config, machine)
    return _bring_to_strength(config, lambda _action, _last_seen: machine)


def _preview(config: CreateConfig, machine: Machine) -> int:
    """Print what would be created; assume an empty project if this one cannot be read."""
    with ExitStack() as stack:
        try:
            observed = stack.enter_context(_drive(config)).look
        except (AccessError, UsageError) as error:  # Cloud TPU has not been asked yet
            print(f"{error}\nIn a project that has no TPUs yet, the command would:", file=sys.stderr)
            observed = Observed
        now = decide(config.wanted, observed())
    _print_actions(config, now)
    if count := sum(isinstance(action, Create) for action in now.actions):
        print(describe_cost(machine, count), file=sys.stderr)
    return 0


def recreate(config: RecreateConfig) -> int:
    """Create missing workers with the same machines as before."""

    def as_it_was(action: Create, last_seen: Mapping[int, Member]) -> Machine:
        machine = choose_machine(action, last_seen)
        if machine is None:
            raise UsageError(f"there is no TPU of the fleet {config.name_prefix!r} to copy; create one with `create`")
        return alter(machine, config)

    return _bring_to_strength(config, as_it_was)


def delete(config: DeleteConfig) -> int:
    """Delete the fleet, or its part in the given zones."""
    zones = set(config.zone_list) or None
    with _drive(config) as drive:
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
    """Count the workers in each zone."""
    observed = _observe(config)
    zones = config.zone_list or tuple(sorted({member.home for member in observed.members}))
    _print_zones(config, observed, zones, [m for m in observed.members if m.home in zones or m.zone in zones])
    return 0


def list_members(config: ListConfig) -> int:
    """List every TPU and request, by zone."""
    members = [m for m in _observe(config).members if not config.zone_list or m.zone in config.zone_list]
    print(json.dumps(as_json(config.name_prefix, members), indent=1) if config.json else members_table(members))
    return 0


def _bring_to_strength(config: FleetConfig, machine_for: "MachineFor") -> int:
    to_strength = partial(decide, config.wanted)
    with _drive(config) as drive:
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
            f"{left.withheld} missing workers were not created, because somebody is deleting this fleet: worker"
            f" {', '.join(map(str, sorted(drive.deleted)))} was deleted during this command. Run it again to create"
            " them"
        )
    if left.waiting:
        raise TpuError(
            f"{left.waiting} workers could not be created. {'; '.join(reasons)}."
            " Run it again later, keep trying with --watch, or join Google's queue with create --queued"
        )
    return 0


@contextmanager
def _connect(config: TpuConfig) -> "Iterator[Cloud]":
    try:
        from layertap.tpu.cloud import Cloud
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("google", "requests"):
            raise
        raise UsageError(f"no module {error.name}: managing TPUs needs {install_command('tpu-ops')}") from error
    with closing(Cloud(config)) as cloud:
        yield cloud


@contextmanager
def _drive(config: TpuConfig) -> "Iterator[Drive]":
    with _connect(config) as cloud:
        from layertap.tpu.drive import Drive

        try:
            yield Drive(cloud, config.zone_list, config.poll_seconds, _say)
        except KeyboardInterrupt:
            _say("Cloud TPU continues what it has accepted; run the same command to continue from there")
            raise


def _observe(config: TpuConfig) -> Observed:
    """Look at all zones once."""
    with _connect(config) as cloud:
        return cloud.observe({*cloud.zones(), *config.zone_list})


def _confirm(members: Iterable[Member]) -> None:
    print(members_table(members), file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("deleting needs confirmation, but standard input is not a terminal; give --yes")
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
    """Print the actions, one per line or as JSON, and what blocks others."""
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
    # Write the line and its end in one call, because many threads print.
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z  {text}\n", end="", file=sys.stderr, flush=True)
