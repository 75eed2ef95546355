"""The machine and the versions that gave a result."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("layertap", "jax", "jaxlib", "flax", "numpy", "torch", "transformers", "isal", "numba")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_CPUINFO = Path("/proc/cpuinfo")


def machine(device: str) -> dict[str, Any]:
    """Return platform, processor with its units for matrix products, memory, and the card that was
    used, if any.
    """
    cpuinfo = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    return {
        "platform": platform.platform(),
        "processor": processor(cpuinfo),
        "flags": flags(cpuinfo),
        "ram_gb": _ram_gb(),
        "gpu": None if device == "cpu" else device,
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str | None]:
    """Return the versions; None for packages that are not installed, such as isal where it has no
    wheel.
    """
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor(cpuinfo: str) -> str:
    """Say how many cores of which kind there are, from the text of `/proc/cpuinfo`."""
    lines = cpuinfo.splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def flags(cpuinfo: str) -> list[str]:
    """Return the flags of the first core that decide how fast matrix products are."""
    first = next((line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))), "")
    return [flag for flag in _FLAGS if flag in first.split()]


def _ram_gb() -> float | None:
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
