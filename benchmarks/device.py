"""The one device that all contenders compute on, and proof that they do.

A library that finds no card computes on the processor and says little of it, and a variable
exported long ago does the same: what comes out looks like a comparison. So the environment of every
process is made here, `python -m benchmarks.device --device gpu` asks the libraries before anything
is made or measured, and each contender asks again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import tyro

from benchmarks.config import Device

Library = Literal["jax", "torch"]

TORCH_DEVICES: Mapping[Device, str] = {"cpu": "cpu", "gpu": "cuda"}
"""What torch calls them."""

_JAX_PLATFORMS: Mapping[Device, str] = {"cpu": "cpu", "gpu": "cuda"}


@dataclass(frozen=True)
class DeviceConfig:
    """Say which device there is, or why there is none, and end with status 1."""

    device: Device = "cpu"
    """Where everything would compute."""

    libraries: tuple[Library, ...] = ("torch", "jax")
    """Who is asked."""


def main() -> None:
    """Print the device's name as a line of JSON."""
    config = tyro.cli(DeviceConfig, use_underscores=True)
    os.environ.update(environment(os.environ, config.device))
    print(json.dumps({"device": check(config.device, config.libraries)}))


def environment(given: Mapping[str, str], device: Device) -> dict[str, str]:
    """The variables of a contender's process: on gpu all see one card, the first that is visible.

    JAX_PLATFORMS stays as the user exported it; `check` refuses one that leads elsewhere.
    """
    chosen = {"JAX_PLATFORMS": _JAX_PLATFORMS[device]} | dict(given)
    if device == "gpu":
        chosen["CUDA_VISIBLE_DEVICES"] = given.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return chosen


def check(device: Device, libraries: tuple[Library, ...]) -> str:
    """Return the device's name, from the last library.

    This ends the process if one of them does not see the device.
    """
    name: str = device
    for library in libraries:
        name = _check_torch(device) if library == "torch" else _check_jax(device)
    return name


def _check_torch(device: Device) -> str:
    import torch

    if device == "cpu":
        return device
    if not torch.cuda.is_available():
        raise SystemExit(
            f"--device gpu, but torch {torch.__version__} sees no GPU: it must be a CUDA build, and"
            f" CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES')!r}) must name a card"
        )
    return str(torch.cuda.get_device_name())


def _check_jax(device: Device) -> str:
    import layertap.pipeline  # noqa: F401, I001 - quietens XLA, which must come before jax
    import jax

    from layertap.errors import DeviceError
    from layertap.pipeline import backend

    try:
        backend.start()
    except DeviceError as error:
        raise SystemExit(f"--device {device}: {error}") from error
    found = backend.platform()
    if found != device:
        asked = f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}"
        raise SystemExit(f"--device {device}, but JAX computes on {found} ({asked}): unset it, or ask for {found}")
    return jax.devices()[0].device_kind


if __name__ == "__main__":
    main()
