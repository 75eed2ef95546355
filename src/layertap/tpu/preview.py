"""What `create --dry_run` would make, in words: also where nobody is logged in, and without Google's client.

A newcomer tries `--dry_run` first, before there is a project. Nothing can be looked at then, so the plan is that of an
empty project, and says so. It also says what is billed: a worker is one TPU, of as many chips as its type has, and one
without a startup script does nothing and costs as much.
"""

import json
import re
import sys

from layertap.tpu.config import CreateConfig, TpuConfig
from layertap.tpu.fleet import Machine, Observed
from layertap.tpu.machine import STARTUP, new_machine
from layertap.tpu.plan import Create, Plan, plan

_TYPE = re.compile(r"(?P<generation>v\w+)-(?P<number>\d+)")
# In these names the number counts cores, of which a chip has two (https://cloud.google.com/tpu/docs/v4).
_NAMED_BY_CORES = ("v2", "v3", "v4", "v5p")


def preview_empty(config: CreateConfig, reason: str) -> int:
    """Print the plan for a project without TPUs, and the reason why it is not the plan for the user's project."""
    machine = new_machine(config)
    print(f"{reason}\nIn a project that has no TPUs yet, the command would:", file=sys.stderr)
    now = plan(config.wanted, Observed())
    print_plan(config, now)
    say_cost(now, machine)
    return 0


def print_plan(config: TpuConfig, now: Plan) -> None:
    """Print the actions, one a line or as JSON."""
    if config.json:
        print(json.dumps({"fleet": config.name_prefix, "actions": [str(action) for action in now.actions]}))
    else:
        print("\n".join(map(str, now.actions)) or "nothing to do")


def say_cost(now: Plan, machine: Machine) -> None:
    """Say on standard error what would be made, counted in what is billed."""
    count = sum(isinstance(action, Create) for action in now.actions)
    if not count:
        return
    each = chips(machine.tpu_type)
    total = "" if each is None else f" ({each} chips each, {count * each} chips in all)"
    price = "spot" if machine.spot else "on-demand"
    print(f"That is {count} TPUs of type {machine.tpu_type}{total}, {price}, one for each worker.", file=sys.stderr)
    if STARTUP not in machine.metadata:
        print("Without --startup they would do nothing, and cost as much.", file=sys.stderr)


def chips(tpu_type: str) -> int | None:
    """How many chips a TPU of this type has; None for a name that is not of the usual form."""
    match = _TYPE.fullmatch(tpu_type)
    if match is None:
        return None
    number = int(match["number"])
    return max(number // 2, 1) if match["generation"] in _NAMED_BY_CORES else number
