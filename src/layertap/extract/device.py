"""What a run computes on, in words, and a loud line where that is not what the machine has it for.

JAX falls back to the CPU in silence: where its plugin for the GPU is missing, or where another process holds the TPU. A
run then takes hundreds of times as long, and ends well. So the first line of a run names its device, and where the
machine shows an accelerator and JAX computes on the CPU all the same, unasked, a warning follows.

Accelerators are looked for where Linux shows them, under `/dev`, which costs nothing; no driver is asked. VFIO devices
count as TPUs only beside a PCI device of Google's: elsewhere they are what a workstation lends to its virtual machines.
"""

import os
import platform as system
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

import layertap
from layertap.core.extras import install_command
from layertap.extract.hosts import Hosts

_ROOT = Path("/")
_GOOGLE = "0x1ae0"


def opening(hosts: Hosts) -> Iterator[str]:
    """The first lines of a run: version, device, and a warning where that is the CPU against expectation."""
    yield f"layertap {layertap.__version__} on {computing_on()}{_of(hosts)}"
    unused = unused_accelerator()
    told: str | None = getattr(jax.config, "jax_platforms", None)  # the types of JAX 0.10 and 0.12 differ over it
    if unused is not None and jax.default_backend() == "cpu" and not cpu_is_meant(told):
        yield (
            f"WARNING: THIS RUN COMPUTES ON THE CPU, although this machine has {unused}. JAX cannot use it:"
            f" {_remedy(unused)}. If you mean the CPU, set JAX_PLATFORMS=cpu, and this warning goes."
        )


def computing_on() -> str:
    """The devices that JAX has found, in words."""
    devices = jax.devices()
    return describe_devices(devices[0].platform, devices[0].device_kind, len(devices))


def describe_devices(platform: str, kind: str, count: int) -> str:
    """How many devices of which kind, such as `8 x TPU v5 lite`, or the processor and its cores."""
    if platform != "cpu":
        return f"{count} x {kind}"
    several = "" if count == 1 else f", as {count} devices"
    return f"CPU ({processor()}, {usable_cores()} cores{several})"


def unused_accelerator(root: Path | None = None, environment: Mapping[str, str] | None = None) -> str | None:
    """The GPU or TPU that this machine shows, in words; None where there is none."""
    root = _ROOT if root is None else root
    gpus = sorted((root / "dev").glob("nvidia[0-9]*"))
    if gpus:
        return f"an NVIDIA GPU ({gpus[0]})"
    tpus = sorted((root / "dev").glob("accel[0-9]*"))
    if not tpus and _has_pci_device_of_google(root):
        tpus = sorted((root / "dev" / "vfio").glob("[0-9]*"))
    if tpus:
        return f"a TPU ({tpus[0]})"
    kind = (os.environ if environment is None else environment).get("TPU_ACCELERATOR_TYPE")
    return f"a TPU (TPU_ACCELERATOR_TYPE is {kind})" if kind else None


def cpu_is_meant(platforms: str | None) -> bool:
    """Whether JAX was told, by `JAX_PLATFORMS` or in a program, to compute on the CPU."""
    return (platforms or "").split(",")[0].strip() == "cpu"


def processor(root: Path | None = None) -> str:
    """What the processor is called, as far as the system says."""
    path = (_ROOT if root is None else root) / "proc" / "cpuinfo"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or system.processor() or system.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of(hosts: Hosts) -> str:
    return "" if hosts.count == 1 else f", host {hosts.index} of {hosts.count}"


def _remedy(unused: str) -> str:
    if "GPU" in unused:
        return f"install its plugin ({install_command('gpu')}), and look for its driver with nvidia-smi"
    return f"end the process that holds it (a TPU serves one), or install its plugin ({install_command('tpu')})"


def _has_pci_device_of_google(root: Path) -> bool:
    vendors = (root / "sys" / "bus" / "pci" / "devices").glob("*/vendor")
    return any(path.read_text().strip() == _GOOGLE for path in vendors)
