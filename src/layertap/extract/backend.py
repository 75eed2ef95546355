"""How JAX is set up, once, before the first array.

Compiled programs are kept in a cache folder (`$XDG_CACHE_HOME/layertap/xla`, else `~/.cache/layertap/xla`), so that a
second start on the same disk compiles nothing. `JAX_COMPILATION_CACHE_DIR` overrides it, as anywhere in JAX. A TPU that
is made anew has an empty disk and compiles once more, and so do all hosts of a slice but the first, which alone writes,
unless the folder is a shared one (JAX takes gs:// there too; we could not try it).

Where libtpu is installed, JAX asks it for TPUs at every start. On a machine without one, libtpu prints a page of errors
and may wait for seconds. So JAX is told to use the CPU there, but only where nothing else could be found: a sign of any
accelerator, a plugin for another one, or a platform that the user named leaves JAX as it is. Signs may be wrong (a
`/dev/vfio/0` need not be a TPU); that costs no more than what JAX does by itself.
"""

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import jax

from layertap.core.extras import install_command
from layertap.errors import DeviceError

_CPUINFO = Path("/proc/cpuinfo")
_ACCELERATOR_FILES = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*", "nvidiactl", "dxg", "kfd")
"""Below /dev: TPUs of old and of new drivers, then NVIDIA's cards (the last two under WSL) and AMD's."""
_NO_SIGNS = ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_ID")
"""Set by libtpu when it is imported, by JAX where it sees no TPU, and by whoever numbers Layertap's workers."""


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


def compute_on_cpu() -> None:
    """Leave accelerators alone, whatever JAX would find; before the first array."""
    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]


def shows_accelerator(devices: Path, environment: Mapping[str, str]) -> bool:
    """Whether a device file or a variable says that this machine may have an accelerator.

    JAX itself knows TPUs on the PCI bus, and then names its platforms; these are the others.
    """
    return any(next(devices.glob(pattern), None) for pattern in _ACCELERATOR_FILES) or any(
        name.startswith(("TPU_", "PJRT_")) and name not in _NO_SIGNS for name in environment
    )


def only_libtpu_would_search() -> bool:
    """Whether JAX was told nothing, and has a single plugin, libtpu, with no accelerator in sight."""
    return (
        not getattr(jax.config, "jax_platforms", None)  # an attribute that its stubs do not know
        and find_spec("libtpu") is not None
        and find_spec("jax_plugins") is None
        and not entry_points(group="jax_plugins")
        and not shows_accelerator(Path("/dev"), os.environ)
    )


def description() -> dict[str, str]:
    """What of the backend decides the bits of a result: JAX's version and the kind of device.

    Processors are all of one kind ("cpu") to JAX, though their matrix kernels may sum in other orders; we tell those
    with bfloat16 products from those without, which round less.
    """
    device = jax.devices()[0].device_kind
    if platform() == "cpu":
        device += " with bfloat16 products" if multiplies_bfloat16() else " without bfloat16 products"
    return {"jax": jax.__version__, "platform": platform(), "device": device}


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor is known to multiply bfloat16 faster than float32: x86 with AVX512-BF16 or AMX, on Linux.

    Elsewhere it is not known, and float32 is safe: it is never less exact, and seldom slower.
    """
    return _CPUINFO.exists() and lists_bfloat16(_CPUINFO.read_text())


def lists_bfloat16(cpuinfo: str) -> bool:
    """Whether the first processor in the text of Linux's `/proc/cpuinfo` has AVX512-BF16 or AMX for bfloat16."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def start() -> None:
    """Have JAX find its devices; raises DeviceError where there are none of the kind that JAX_PLATFORMS names.

    To be called first, and after `jax.distributed.initialize` where there are several hosts.
    """
    if only_libtpu_would_search():
        compute_on_cpu()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no plugin for a platform that is named
        named = os.environ.get("JAX_PLATFORMS", "")
        raise DeviceError(
            f"JAX finds no device (JAX_PLATFORMS is {named!r}): {str(error) or 'it has no plugin for that'}. Unset the"
            f" variable, or install what the device needs: for a GPU {install_command('gpu')}, for a TPU the same with"
            " [tpu]; a TPU serves one process at a time"
        ) from error


def platform() -> str:
    """What JAX computes on: `cpu`, `gpu` or `tpu`."""
    return jax.default_backend()


def usual_batch_size(platform: str) -> int:
    """Rows a step, on each device of a platform, where none are asked for.

    On CPU a second row makes nothing faster, and a step of four rows of 4,096 tokens of 0.5B, all layers in float32,
    would keep 1.4 GB until it is harvested.
    """
    return 1 if platform == "cpu" else 4


def device_bytes() -> int | None:
    """The memory of one device, where it has its own and says how much."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
