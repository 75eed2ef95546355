"""The process of one part: its cases in order, each announced, each with its figures on the disk
when it is done.

Nothing is caught here: what goes wrong ends the process, and the parent writes down what it printed
(runner.py).
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks.accelerator import records
from benchmarks.accelerator.config import Part, PartConfig
from benchmarks.device import Library, check

Figures = Mapping[str, Any]
Cases = Mapping[str, Callable[[], Figures]]

_MODULES: Mapping[Part, tuple[str, tuple[Library, ...]]] = {
    "kernel": ("kernel", ("jax",)),
    "prepare": ("prepare", ()),
    "reference": ("reference", ("torch",)),
    "parity": ("parity", ("jax",)),
    "ceiling": ("ceilings", ("torch", "jax")),
    "layertap": ("layertap_speed", ("jax",)),
    "transformers": ("transformers_speed", ("torch",)),
    "time": ("where_time_goes", ("jax",)),
    "command": ("command", ()),
    "stream": ("stream", ("jax",)),
}
"""Where each part's `cases` are, and the libraries that must see the device."""


def main() -> None:
    """Run the part that the command line names."""
    config = tyro.cli(PartConfig, use_underscores=True)
    module, libraries = _MODULES[config.part]
    check(config.platform, libraries)
    cases: Cases = importlib.import_module(f"benchmarks.accelerator.{module}").cases(config)
    records.append(Path(config.out), {"part": config.part, "what": "cases", "cases": list(cases)})
    for name, run in cases.items():
        if name in config.skip:
            continue
        about = {"part": config.part, "case": name}
        records.append(Path(config.out), about | {"what": "begun"})
        records.append(Path(config.out), about | {"what": "figures", "figures": dict(run())})


if __name__ == "__main__":
    main()
