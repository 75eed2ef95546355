"""`python -m benchmarks.planning`: what `layertap plan --accelerator cpu` foresees, beside the run
that follows.

They take turns, in processes of their own, with an empty compilation cache for each run, so that it
compiles as the plan says. One JSON line a turn: seconds foreseen and taken, their ratio, and
whether the bytes agree.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks


@dataclass(frozen=True)
class PlanningConfig:
    """How well a plan on this machine foresees the run."""

    size: str = "tiny"
    """The shape of the checkpoint that is made on the spot."""

    layers: int | None = None
    """This many layers instead of the size's own number."""

    tasks: int = 24
    """How many tasks are made."""

    repeats: int = 2
    """How many turns."""

    flags: str = "--activation_type residual mlp attn"
    """Further flags of the run; mind the = of --flags=, since they begin with hyphens."""


def main() -> None:
    """Make what is missing, plan, run, and compare."""
    config = tyro.cli(PlanningConfig, use_underscores=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_checkpoint(place / "model", config.size, layers=config.layers)
        write_tasks(place / "tasks.jsonl", make_tasks(config.tasks))
        for turn in range(config.repeats):
            print(json.dumps(_turn(place, config.flags.split(), turn)), flush=True)


def _turn(place: Path, flags: list[str], turn: int) -> dict[str, Any]:
    output = place / f"out{turn}"
    run = ["--dataset_path", "tasks.jsonl", "--output_dir", str(output), "--model_path", "model", *flags]
    plan = json.loads(_layertap(place, "plan", *run, "--accelerator", "cpu", "--json"))
    said = _layertap(place, "extract", *run, "--no_checkpointing", cache=place / f"cache{turn}")
    match = re.search(r"^([\d.]+) s, \d+ tokens/s", said, re.MULTILINE)
    assert match is not None, said
    manifest = json.loads((output / "metadata.json").read_text())
    written = sum(file["bytes"] for shard in manifest["shards"] for file in shard["files"])
    times = plan["times"]
    foreseen = times["expected"] + times["start_up"]
    return {
        "foreseen_seconds": round(foreseen, 1),
        "compiling": round(times["start_up"], 1),
        "taken_seconds": float(match[1]),
        "taken_of_foreseen": round(float(match[1]) / foreseen, 2),
        "foreseen_bytes": round(plan["stored_bytes"]),
        "written_bytes": written,
    }


def _layertap(place: Path, *arguments: str, cache: Path | None = None) -> str:
    environment = os.environ | ({} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)})
    command = [sys.executable, "-m", "layertap", *arguments]
    return subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
