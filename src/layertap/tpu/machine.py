"""Choose the configuration of a new TPU, from flags or from the TPU it replaces; and its cost."""

import re
from collections.abc import Mapping
from dataclasses import replace

from layertap.errors import UsageError
from layertap.tpu.config import CreateConfig, FleetConfig
from layertap.tpu.decision import Create
from layertap.tpu.fleet import Machine, Member, Phase

# https://cloud.google.com/tpu/docs/runtimes names one image for PyTorch and JAX per generation.
_RUNTIMES = {
    "v2-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
_USUAL_TYPE = "v5litepod-8"
_TYPE = re.compile(r"(?P<generation>v\w+)-(?P<number>\d+)")
# In these names the number counts cores, of which a chip has two
# (https://cloud.google.com/tpu/docs/v4).
_NAMED_BY_CORES = ("v2", "v3", "v4", "v5p")

STARTUP = "startup-script"
PACKAGE = "layertap-package"
EXTRACT_FLAGS = "layertap-extract-flags"


def new_machine(config: CreateConfig) -> Machine:
    """Return the machine that the flags of `create` describe.

    Raises UsageError for a type without a known image, and if the startup script or what it reads
    is missing: such TPUs would be billed and do nothing.
    """
    tpu_type = config.tpu_type or _USUAL_TYPE
    runtime = config.runtime_version or _runtime_for(tpu_type)
    blank = Machine(tpu_type, runtime, config.spot, config.queued, external_ips=config.external_ips)
    machine = alter(blank, config)
    _check_startup(machine.metadata)
    return machine


def alter(machine: Machine, config: FleetConfig) -> Machine:
    """Return `machine` with the changes that the flags give."""
    runtime = config.runtime_version or (_runtime_for(config.tpu_type) if config.tpu_type else None)
    return replace(
        machine,
        tpu_type=config.tpu_type or machine.tpu_type,
        runtime_version=runtime or machine.runtime_version,
        service_account=config.service_account or machine.service_account,
        network=config.network or machine.network,
        subnetwork=config.subnetwork or machine.subnetwork,
        metadata={**machine.metadata, **_metadata(config)},
    )


def choose_machine(action: Create, last_seen: Mapping[int, Member]) -> Machine | None:
    """Return the machine to copy: the worker's own, else a running one of its home, else any."""
    if own := action.replaces or last_seen.get(action.worker):
        return own.machine
    others = sorted(
        last_seen.values(),
        key=lambda other: (other.home != action.home, other.phase is not Phase.RUNNING, other.worker),
    )
    return others[0].machine if others else None


def _runtime_for(tpu_type: str) -> str:
    for prefix, runtime in _RUNTIMES.items():
        if tpu_type.startswith(prefix):
            return runtime
    raise UsageError(
        f"--tpu_type {tpu_type}: no image is known for it; give --runtime_version"
        f" (known types begin with {', '.join(_RUNTIMES)})"
    )


def _metadata(config: FleetConfig) -> dict[str, str]:
    given = {PACKAGE: config.package, EXTRACT_FLAGS: config.extract_flags}
    metadata = {name: value for name, value in given.items() if value is not None}
    return metadata if config.startup is None else {**metadata, STARTUP: _script(config)}


def _check_startup(metadata: Mapping[str, str]) -> None:
    script = metadata.get(STARTUP)
    for name, flag in ((PACKAGE, "--package"), (EXTRACT_FLAGS, "--extract_flags")):
        if script is None and name in metadata:
            raise UsageError(f"{flag} is read by the startup script; give --startup scripts/setup_tpu_worker.sh too")
        if script is not None and name in script and not metadata.get(name):
            raise UsageError(f"the script of --startup needs {flag}; without it the TPUs would do nothing")


def _script(config: FleetConfig) -> str:
    try:
        return config.startup_path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--startup {config.startup}: cannot be read as text: {error}") from error


def describe_cost(machine: Machine, count: int) -> str:
    """Describe `count` machines as they are billed; warn if they would be idle."""
    each = count_chips(machine.tpu_type)
    total = "" if each is None else f" ({each} chips each, {count * each} chips in all)"
    price = "spot" if machine.spot else "on-demand"
    idle = "" if STARTUP in machine.metadata else "\nWithout --startup they would be idle but cost the same."
    return f"That is {count} TPUs of type {machine.tpu_type}{total}, {price}, one for each worker.{idle}"


def count_chips(tpu_type: str) -> int | None:
    """Return how many chips a TPU of this type has; None for a name in an unknown form."""
    match = _TYPE.fullmatch(tpu_type)
    if match is None:
        return None
    number = int(match["number"])
    return max(number // 2, 1) if match["generation"] in _NAMED_BY_CORES else number
