"""Set up JAX once, before the first array, and describe what a run computes on.

**Compiled programs** are kept in a cache folder (`$XDG_CACHE_HOME/layertap/xla`, else
`~/.cache/layertap/xla`), so that a second start on the same disk compiles nothing.
`JAX_COMPILATION_CACHE_DIR` overrides it, as everywhere in JAX. A recreated TPU has an empty disk
and compiles again. So do all hosts of a slice except the first: only the first writes, unless the
folder is shared (JAX accepts gs:// too; we could not try it).

**libtpu**, if installed, makes JAX search for TPUs at every start. On a machine without one, this
prints a page of errors and may take seconds. So JAX is told to use the CPU there, but only if it
can find nothing else: JAX is left alone if there is a sign of any accelerator, a plugin for another
one, or a platform that you named. A sign may be wrong (a `/dev/vfio/0` need not be a TPU); this
costs no more than what JAX does by itself.

**A run on the CPU by mistake** is announced loudly. JAX falls back to the CPU silently if its GPU
plugin is missing, or if another process holds the TPU; the run then takes hundreds of times as
long. So the first line of a run names its device. A warning follows if the machine shows an
accelerator and JAX computes on the CPU unasked. For this, we look for accelerators under `/dev`,
which costs nothing. VFIO devices count as TPUs only beside a PCI device of Google's: elsewhere, a
workstation lends them to its virtual machines.
"""

import os
import platform as system
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import jax

import layertap
from layertap.core.extras import install_command
from layertap.errors import DeviceError

_ROOT = Path("/")
_GOOGLE = "0x1ae0"
_ACCELERATOR_FILES = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*", "nvidiactl", "dxg", "kfd")
"""Below /dev: TPUs with old and new drivers, NVIDIA cards (the last two under WSL), AMD cards."""
_NO_SIGNS = ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_ID")
"""Set by libtpu itself, by JAX if it sees no TPU, and to number Layertap's workers."""


def configure() -> None:
    """Switch the persistent compilation cache on, for programs of any size."""
    settings: dict[str, str | float] = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        settings["jax_compilation_cache_dir"] = os.path.join(cache, "layertap", "xla")
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]


def start() -> None:
    """Make JAX find its devices; raises DeviceError if it finds none that JAX_PLATFORMS allows.

    Call it first, but after `jax.distributed.initialize` if there are several hosts.
    """
    if only_libtpu_would_search():
        compute_on_cpu()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter if JAX has no plugin for a named platform
        named = os.environ.get("JAX_PLATFORMS", "")
        raise DeviceError(
            f"JAX finds no device (JAX_PLATFORMS is {named!r}): {str(error) or 'it has no plugin for that'}. Unset the"
            f" variable, or install what the device needs: for a GPU {install_command('gpu')}, for a TPU the same with"
            " [tpu]; a TPU serves one process at a time"
        ) from error


def compute_on_cpu() -> None:
    """Ignore accelerators, whatever JAX would find; call before the first array."""
    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]


def only_libtpu_would_search() -> bool:
    """Whether nothing told JAX what to use, libtpu is its only plugin, and nothing is in sight."""
    return (
        not _platforms_asked_for()
        and find_spec("libtpu") is not None
        and find_spec("jax_plugins") is None
        and not entry_points(group="jax_plugins")
        and not shows_accelerator(Path("/dev"), os.environ)
    )


def shows_accelerator(devices: Path, environment: Mapping[str, str]) -> bool:
    """Whether a device file or a variable says that this machine may have an accelerator.

    JAX itself finds TPUs on the PCI bus, and then names its platforms; this finds the others.
    """
    return any(next(devices.glob(pattern), None) for pattern in _ACCELERATOR_FILES) or any(
        name.startswith(("TPU_", "PJRT_")) and name not in _NO_SIGNS for name in environment
    )


def _platforms_asked_for() -> str:
    """The platforms set by `JAX_PLATFORMS` or in a program. JAX's stubs lack the attribute."""
    return getattr(jax.config, "jax_platforms", None) or ""


def platform() -> str:
    """What JAX computes on: `cpu`, `gpu` or `tpu`."""
    return jax.default_backend()


def description() -> dict[str, str]:
    """The parts of the backend that decide the bits of a result: JAX's version and the kind of
    device.

    To JAX all processors are of one kind ("cpu"), but their matrix kernels may sum in other orders.
    We distinguish those with bfloat16 products from those without, which round less.
    """
    device = jax.devices()[0].device_kind
    if platform() == "cpu":
        device += " with bfloat16 products" if multiplies_bfloat16() else " without bfloat16 products"
    return {"jax": jax.__version__, "platform": platform(), "device": device}


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor is known to multiply bfloat16 faster than float32.

    If it is not known, float32 is safe: it is never less exact, and seldom slower.
    """
    return lists_bfloat16(_cpuinfo(Path("/")))


def lists_bfloat16(cpuinfo: str) -> bool:
    """Whether the first processor in a `/proc/cpuinfo` has AVX512-BF16, or AMX for bfloat16."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_first_value(cpuinfo, "flags").split())


def usual_batch_size(platform: str) -> int:
    """Rows a step on each device of a platform, if you ask for no number.

    On CPU a second row makes nothing faster, and a step of four rows of 4,096 tokens of 0.5B, all
    layers in float32, would keep 1.4 GB until it is harvested.
    """
    return 1 if platform == "cpu" else 4


def device_bytes() -> int | None:
    """The memory of one device, if it has its own and reports it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def opening_lines(host: int = 0, hosts: int = 1) -> Iterator[str]:
    """The first lines of a run: version, device, and a warning if the device is unexpected."""
    of_host = "" if hosts == 1 else f", host {host} of {hosts}"
    yield f"layertap {layertap.__version__} on {computing_on()}{of_host}"
    unused = unused_accelerator()
    cpu_is_meant = _platforms_asked_for().split(",")[0].strip() == "cpu"
    if unused is not None and platform() == "cpu" and not cpu_is_meant:
        yield (
            f"WARNING: THIS RUN COMPUTES ON THE CPU, although this machine has {unused}. JAX cannot use it:"
            f" {_remedy(unused)}. If you mean the CPU, set JAX_PLATFORMS=cpu, and this warning goes."
        )


def computing_on() -> str:
    """A description of the devices that JAX has found."""
    devices = jax.devices()
    return describe_devices(devices[0].platform, devices[0].device_kind, len(devices))


def describe_devices(platform: str, kind: str, count: int) -> str:
    """The number and kind of devices, such as `8 x TPU v5 lite`, or the processor and its cores."""
    if platform != "cpu":
        return f"{count} x {kind}"
    several = "" if count == 1 else f", as {count} devices"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"CPU ({processor()}, {cores} cores{several})"


def unused_accelerator(root: Path | None = None, environment: Mapping[str, str] | None = None) -> str | None:
    """A description of the GPU or TPU that this machine shows; None if there is none."""
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


def _has_pci_device_of_google(root: Path) -> bool:
    vendors = (root / "sys" / "bus" / "pci" / "devices").glob("*/vendor")
    return any(path.read_text().strip() == _GOOGLE for path in vendors)


def _remedy(unused: str) -> str:
    if "GPU" in unused:
        return f"install its plugin ({install_command('gpu')}), and look for its driver with nvidia-smi"
    return f"end the process that holds it (a TPU serves one), or install its plugin ({install_command('tpu')})"


def processor(root: Path | None = None) -> str:
    """The processor's name, if the system gives it."""
    return (
        _first_value(_cpuinfo(_ROOT if root is None else root), "model name") or system.processor() or system.machine()
    )


def _cpuinfo(root: Path) -> str:
    path = root / "proc" / "cpuinfo"
    return path.read_text(errors="replace") if path.exists() else ""


def _first_value(cpuinfo: str, name: str) -> str:
    """The first processor's value for this name in `/proc/cpuinfo`; may be empty."""
    lines = (line.partition(":") for line in cpuinfo.splitlines() if line.startswith(name))
    return next((value.strip() for _, _, value in lines), "")
