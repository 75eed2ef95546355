"""`layertap extract` from tasks to committed shards in the work folder, which is on a memory disk
where there is room, and once as a user types it, verified.

What is compared: one layer and all, both formats, one core beside all of them, the prefix computed
once beside each prompt's own, and three layers of the large shape. The core, the format and the
prefix that are not named are all, safetensors, and shared. Cores used are seconds of processor time
over seconds of run. One layer is of four times the tasks: a card computes those of all layers in a
second, and the start would count for more than the run. On a card a run that is not counted fills
the compilation cache first; the last two run programs that are there already.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.__main__ import run_module
from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.prepare import DEEP
from benchmarks.accelerator.sizes import contender, sizes_of, tasks_file
from benchmarks.config import ContenderConfig, Device
from benchmarks.workload import model_folder, seconds_of
from layertap.model.families import read_config

ONE_CORE = "all layers, one core"
ALL_CORES = "all layers"
SHARED = "one layer"
EACH = "one layer, the prefix with each prompt"
THREE_LAYERS = "7b, three layers"

_STEM = "activations-command"
_SHOWN_SECONDS = 0.005
_REPEATS: dict[Device, int] = {"gpu": 2, "cpu": 1}


def cases(config: PartConfig) -> Cases:
    """The runs, those with an aim or a comparison first, and the command as it is typed."""
    given = replace(contender(config), format="safetensors", dtype="bfloat16", repeats=_REPEATS[config.platform])
    last = read_config(model_folder(given)).num_hidden_layers - 1 if model_folder(given).exists() else 0
    one, every = replace(given, layers=(last,)), replace(given, tasks=sizes_of(config).written)
    deep = replace(given, size=DEEP, layers=sizes_of(config).deep_layers, tasks=sizes_of(config).written // 2)
    runs = {
        ALL_CORES: every,
        THREE_LAYERS: deep,
        SHARED: one,
        EACH: replace(one, prefix="whole"),
        ONE_CORE: replace(every, cores=1, repeats=1),
    }
    if config.prefix == "whole":  # the kernel fails behind a prefix: nothing to compare
        del runs[EACH]
    found: dict[str, Callable[[], Figures]] = {name: partial(_run, run) for name, run in runs.items()}
    found["as it is typed, and verified"] = partial(_typed, config, given)
    return found | {"all layers, gzipped pickle": partial(_run, replace(every, format="pickle", repeats=1))}


def _typed(config: PartConfig, given: ContenderConfig) -> Figures:
    folder = Path(str(config.work)) / _STEM
    layertap = [sys.executable, "-m", "layertap"]
    extract = [
        *("extract", "--model_path", str(model_folder(given)), "--dataset_path", str(tasks_file(config))),
        *("--predictions_per_task", "1", "--max_tasks", str(min(8, sizes_of(config).tasks)), "--certify", "2"),
        *("--output_dir", str(folder), "--checkpoint_dir", f"{folder}-checkpoints"),
        *([] if given.prefix == "shared" else ["--no_share_prefix"]),
    ]
    try:
        seconds = seconds_of(lambda: subprocess.run([*layertap, *extract], check=True))
        verified = subprocess.run([*layertap, "verify", str(folder), "--json"], stdout=subprocess.PIPE, check=True)
        manifest = json.loads(next(folder.rglob("metadata.json")).read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    taps = manifest["certificate"]["taps"]
    return {
        "seconds": seconds,
        "verified": verified.returncode == 0,
        "cosine to float32, worst": min(tap["cosine_min"] for tap in taps),
        "relative error, worst": max(tap["relative_error_max"] for tap in taps),
        "relative error, mean of last layer": taps[-1]["relative_error_mean"],
    }


def _run(given: ContenderConfig) -> Figures:
    return figures_of(run_module("benchmarks.accelerator.whole_run", given))


def figures_of(found: Mapping[str, Any]) -> Figures:
    """What is shown of a run."""
    waited = {name.removeprefix("waited_"): value for name, value in found.items() if name.startswith("waited_")}
    working = {stage: seconds for stage, seconds in waited.items() if stage != "loading"}
    longest = max(working, key=lambda stage: working[stage])
    return {
        "tokens/s": found["tokens"] / found["seconds"],
        "MB/s written": found["written_mb"] / found["seconds"],
        "GB written": found["written_mb"] / 1e3,
        "seconds": found["seconds"],
        "waited longest for": f"{longest} ({working[longest] / found['seconds']:.0%})",
        "cores": found["cores"],
        "cores used": found["processor_seconds"] / found["whole_seconds"],
        "peak GB": found["peak_mb"] / 1e3,
        "prefix tokens not computed": found["shared_tokens"] / found["tokens"],
        "waited s": _seconds(waited),
        "threads s": _seconds(found["threads"]),
        "in its own words": [found["bottleneck"]] if found["bottleneck"] else ["writing was no bottleneck"],
    }


def _seconds(spent: Mapping[str, float]) -> list[str]:
    return [f"{name} {seconds:.2f}" for name, seconds in spent.items() if seconds >= _SHOWN_SECONDS]
