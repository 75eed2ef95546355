"""The parts in order, and the report. Neither JAX nor torch is loaded here."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import tyro

from benchmarks.accelerator import page, records
from benchmarks.accelerator.config import PARTS, AcceleratorConfig, Limits, Part
from benchmarks.accelerator.runner import run_part
from benchmarks.config import Device, Dtype
from benchmarks.device import environment
from benchmarks.machine import machine, versions

_MEMORY_DISK = Path("/dev/shm")
_ROOM: dict[Device, float] = {"gpu": 45e9, "cpu": 1e9}
"""Bytes that checkpoints and the largest run take; a container's memory disk may be smaller."""
_REHEARSAL_PATIENCE = 10  # a machine with other work beside it starts a process in a minute


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for; ends with status 1 where a case failed or was not exact
    enough.
    """
    config = tyro.cli(AcceleratorConfig, args=arguments, use_underscores=True)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (records.RESULTS, records.REPORT, records.LOG):
        (folder / name).unlink(missing_ok=True)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with tempfile.TemporaryDirectory(prefix="layertap-", dir=_work_folder(config)) as work:
            run(replace(config, out=str(folder.resolve()), work=work))
    finally:
        signal.signal(signal.SIGTERM, before)
    bad = [record for record in records.read(folder) if is_bad(record)]
    print(f"\n{folder / records.REPORT}: {len(bad)} cases failed, were missed or not exact enough", flush=True)
    sys.exit(1 if bad else 0)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def run(config: AcceleratorConfig) -> None:
    """Every part within the time that is left; one that ends early leaves its time to the next."""
    folder, begun = Path(config.out), time.monotonic()
    variables, say = part_environment(os.environ, config), printer(folder)
    records.append(
        folder, {"part": "machine", "what": "machine", "platform": config.platform, **about(config, variables)}
    )
    wanted = {part: limits for part, limits in PARTS.items() if not config.parts or part in config.parts}
    scale = 60 * config.minutes / sum(limits.seconds for limits in wanted.values())
    patience = max(scale, 1.0) * (_REHEARSAL_PATIENCE if config.platform == "cpu" else 1)
    due = begun
    for part, usual in wanted.items():
        due += usual.seconds * scale
        started = partial(command, without_what_failed(config, records.read(folder)), part)
        limits = Limits(max(due - time.monotonic(), 1.0), usual.case_seconds * patience)
        run_part(folder, part, started, variables, limits, say)


def about(config: AcceleratorConfig, variables: Mapping[str, str]) -> dict[str, object]:
    """The machine, the card and its driver, and the versions of what computes."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    card = "cpu"
    if config.platform == "gpu":
        card = "no nvidia-smi"
        if shutil.which(query[0]):
            done = subprocess.run(query, env=dict(variables), stdout=subprocess.PIPE, text=True, check=False)
            card = done.stdout.strip() or "nvidia-smi names none"
    work = Path(str(config.work))
    room = f"{work.parent}, {shutil.disk_usage(work).free / 1e9:.0f} GB free"
    return {"machine": {**machine(card), "work folder": room}, "versions": versions() | versions(("tokamax",))}


def part_environment(given: Mapping[str, str], config: AcceleratorConfig) -> dict[str, str]:
    """A part's variables: one card; JAX takes memory as it needs it; programs are compiled once for
    all parts.
    """
    own = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(Path(str(config.work)) / "xla"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return environment(given, config.platform) | own


def command(config: AcceleratorConfig, part: Part, skip: Sequence[str]) -> list[str]:
    """The process of one part."""
    flags = ["--part", part]
    for name, value in asdict(replace(config, parts=())).items():
        values = value if isinstance(value, tuple) else (value,)
        if values and values != (None,):
            flags += [f"--{name}", *map(str, values)]
    return [sys.executable, "-m", "benchmarks.accelerator.part", *flags, *(["--skip", *skip] if skip else [])]


def without_what_failed(config: AcceleratorConfig, found: Sequence[records.Record]) -> AcceleratorConfig:
    """The settings of what follows: XLA's loop in a dtype in which the kernel fails, and no shared
    prefix where it fails behind one.
    """
    behind = [
        record for record in found if record["part"] == "kernel" and is_bad(record) and record["what"] != "missed"
    ]
    prefix: Literal["shared", "whole"] = config.prefix
    if any(record["case"].startswith("behind a prefix") for record in behind):
        prefix = "whole"
    return replace(config, loop=tuple(sorted({*config.loop, *kernel_failed(found)})), prefix=prefix)


def kernel_failed(found: Sequence[records.Record]) -> set[Dtype]:
    """The dtypes in which the kernel cannot be used for what follows: it died, or its result is
    wrong.
    """
    bad = [record["case"] for record in found if record["part"] == "kernel" and is_bad(record)]
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    return {dtype for dtype in dtypes for case in bad if case.startswith("packed") and case.endswith(dtype)}


def is_bad(record: records.Record) -> bool:
    """Whether a case failed, or was less exact than it must be."""
    return record["what"] in ("failed", "missed") or (
        record["what"] == "figures" and record["figures"].get("exact") is False
    )


def printer(folder: Path) -> Callable[[], None]:
    """Prints each result once, when it is new, and has it in the report."""
    printed = 0

    def say() -> None:
        nonlocal printed
        found = [record for record in records.read(folder) if record["what"] in ("figures", "failed", "missed")]
        for record in found[printed:]:
            print(page.line(record), flush=True)
        if len(found) > printed:
            page.write(folder)
        printed = len(found)

    return say


def _work_folder(config: AcceleratorConfig) -> Path | None:
    """None stands for the usual folder for temporary files."""
    if config.work is not None:
        Path(config.work).mkdir(parents=True, exist_ok=True)
        return Path(config.work)
    roomy = _MEMORY_DISK.is_dir() and shutil.disk_usage(_MEMORY_DISK).free >= _ROOM[config.platform]
    return _MEMORY_DISK if roomy else None


if __name__ == "__main__":
    main()
