"""`layertap extract` from tasks to committed shards on a memory disk, and once more as a user types
it, verified.

Cores used are seconds of processor time over seconds of run. A run that is not counted fills the
compilation cache for each choice of layers; both formats run the same programs.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.__main__ import run_alone
from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import contender, sizes_of, tasks_file
from benchmarks.config import ContenderConfig
from benchmarks.workload import model_folder, seconds_of
from layertap.model.families import read_config

FIRST: Literal["safetensors"] = "safetensors"
_STEM = "activations-command"


def cases(config: PartConfig) -> Cases:
    """One layer and all, in both formats; before them, the command as it is typed."""
    given = contender(config)
    last = read_config(model_folder(given)).num_hidden_layers - 1 if model_folder(given).exists() else 0
    runs = {
        f"{form}, {name}": partial(_run, replace(given, format=form, layers=layers, dtype="bfloat16"), form == FIRST)
        for form in (FIRST, "pickle")
        for name, layers in (("one layer", (last,)), ("all layers", ()))
    }
    return {"as it is typed, and verified": partial(_typed, config, given), **runs}


def _typed(config: PartConfig, given: ContenderConfig) -> Figures:
    folder = Path(str(config.work)) / _STEM
    layertap = [sys.executable, "-m", "layertap"]
    extract = [
        *("extract", "--model_path", str(model_folder(given)), "--dataset_path", str(tasks_file(config))),
        *("--predictions_per_task", "1", "--max_tasks", str(min(8, sizes_of(config).tasks)), "--certify", "2"),
        *("--output_dir", str(folder), "--checkpoint_dir", f"{folder}-checkpoints"),
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


def _run(given: ContenderConfig, compile_first: bool) -> Figures:
    if compile_first:
        run_alone(given)
    figures = run_alone(given)
    return {
        "tokens/s": figures["tokens"] / figures["seconds"],
        "MB/s written": figures["written_mb"] / figures["seconds"],
        "GB written": figures["written_mb"] / 1e3,
        "seconds": figures["seconds"],
        "cores used": figures["processor_seconds"] / figures["whole_seconds"],
        "cores": os.cpu_count(),
        "peak GB": figures["peak_mb"] / 1e3,
        "waited s": [f"{name[7:]} {value:.2f}" for name, value in figures.items() if name.startswith("waited_")],
    }
