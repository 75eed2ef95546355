"""`python -m benchmarks`: the contenders take turns, and the medians go into a table, a JSON file
and a plot.

The JSON file is written again after each size and dtype. One that fails is named in it with the
runs it had, the others continue, and the status at the end is 1.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import report
from benchmarks.config import BenchmarkConfig, Contender, ContenderConfig, resolved
from benchmarks.device import environment
from benchmarks.machine import machine
from benchmarks.measures import MEASURES
from benchmarks.workload import Figures, baseline_ids, model_folder, prompt_ids
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.model.families import read_config

Runs = dict[str, list[Figures]]


def main() -> None:
    """Make what is missing, measure, and report."""
    config = resolved(tyro.cli(BenchmarkConfig, use_underscores=True))
    about = machine(_device(config))
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    if config.measure == "compare":
        compare(config, about)
    else:
        _measure(config, about)


def _device(config: BenchmarkConfig) -> str:
    """Return the device's name.

    This ends the process if a needed library does not see the device.
    """
    libraries = ["torch", "jax"] if config.measure == "compare" else ["jax"]
    command = [sys.executable, "-m", "benchmarks.device", "--device", config.device, "--libraries", *libraries]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return str(json.loads(done.stdout.splitlines()[-1])["device"])


def compare(config: BenchmarkConfig, about: dict[str, Any]) -> None:
    """Write tables, results.json and a plot for every size and dtype.

    This ends the process with status 1 if one failed.
    """
    output = Path(config.output_dir)
    results: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for size in config.size:
        given = with_data(config, size)
        for dtype in config.dtypes:
            found = _result(replace(given, dtype=dtype))
            results.setdefault(size, {})[dtype] = found
            failed += [f"{size} {dtype}: {found['failed']}"] if "failed" in found else []
            report.write_json(output / "results.json", config, about, {"results": results})
    whole = {
        f"{size} {dtype}": found["runs"]
        for size, by_dtype in results.items()
        for dtype, found in by_dtype.items()
        if "failed" not in found
    }
    if whole:
        report.plot(output / "results.png", whole, config.device)
    print(f"\n{output / 'results.json'}" + (f", {output / 'results.png'}" if whole else ""))
    if failed:
        sys.exit("\n".join(failed))


def _result(config: ContenderConfig) -> dict[str, Any]:
    """Print one size and dtype, and return what to keep of it; if it fails, what it had so far."""
    whole, given = ([len(ids) for ids in make(config)] for make in (prompt_ids, baseline_ids))
    lengths = {name: whole if name in ("forward", "layertap") else given for name in report.TITLES[config.device]}
    gflop = report.gflop_per_token(read_config(model_folder(config)), config.layers, lengths)
    runs: Runs = {}
    try:
        take_turns(config, runs)
    except subprocess.CalledProcessError as error:
        return {"runs": runs, "failed": f"status {error.returncode} of {' '.join(error.cmd[1:])}"}
    print(f"\n{report.table(f'{config.size} {config.dtype}', runs, gflop, config.device)}")
    print(f"\ntransformers was given {len(given)} of {len(whole)} prompts, {sum(given):,} of {sum(whole):,} tokens.")
    print(f"{report.waits(runs['layertap'])}\n{report.written(runs)}", flush=True)
    return report.result(runs, gflop)


def take_turns(config: ContenderConfig, runs: Runs) -> None:
    """Add each contender's runs to `runs`, one after another.

    A run before them fills the compilation cache.
    """
    turns: list[Contender] = ["ceiling", "padded", "best", "layertap"]
    if config.device == "gpu":
        turns.insert(3, "forward")
        run_alone(replace(config, contender="forward"))
    else:
        run_alone(replace(config, contender="layertap", tasks=1))
    for turn in range(config.repeats):
        for name in turns:
            figures = run_alone(replace(config, contender=name))
            runs.setdefault(name, []).append(figures)
            said = f"{config.size} {config.dtype} turn {turn + 1} {name}: {json.dumps(figures)}"
            print(said, file=sys.stderr, flush=True)


def _measure(config: BenchmarkConfig, about: dict[str, Any]) -> None:
    """Return the sentences of one measure, and every run behind them as JSON, even runs that only
    fill the compilation cache.
    """
    path = Path(config.output_dir) / f"{config.measure}.json"
    found: dict[str, list[Any]] = {"said": [], "runs": []}

    def run(one: ContenderConfig) -> Figures:
        figures = run_alone(one)
        found["runs"].append({"settings": _settings(one), "figures": figures})
        report.write_json(path, config, about, found)
        return figures

    for size in config.size[:1] if config.measure == "formats" else config.size:
        said = MEASURES[config.measure](with_data(config, size), run)
        print(f"{size}:\n{said}" if len(config.size) > 1 else said, flush=True)
        found["said"].append({"size": size, "said": said.splitlines()})
        report.write_json(path, config, about, found)


def _settings(config: ContenderConfig) -> dict[str, Any]:
    """Return the settings that distinguish the runs of a measure."""
    names = ("contender", "size", "dtype", "tasks", "layers", "activation_type", "format", "storage_dtype")
    return {name: getattr(config, name) for name in (*names, "cores", "prefix")}


def with_data(config: BenchmarkConfig, size: str) -> ContenderConfig:
    """Return the settings for one size, with a dataset and a checkpoint that exist."""
    given = ContenderConfig(**{**asdict(config), "size": size})
    if not (model_folder(given) / "config.json").exists():
        print(f"making {model_folder(given)}", file=sys.stderr)
        tokenizer = None if config.tokenizer is None else Path(config.tokenizer)
        write_checkpoint(model_folder(given), size, tokenizer=tokenizer)
    if given.dataset_path is not None:
        return given
    tasks = Path(config.output_dir) / "tasks.jsonl"
    write_tasks(tasks, make_tasks(4 * config.tasks if config.measure == "memory" else config.tasks))
    return replace(given, dataset_path=str(tasks))


def run_alone(config: ContenderConfig) -> Figures:
    """Run one contender in a separate process, which sees one device."""
    figures: Figures = run_module("benchmarks.contenders", config)
    return figures


def run_module(module: str, config: ContenderConfig) -> Any:  # noqa: ANN401 - what it printed, as JSON
    """Do the same for any module that takes these settings and prints a line of JSON last."""
    flags = []
    for name, value in asdict(config).items():
        parts = value if isinstance(value, tuple) else (value,)
        if parts and parts != (None,):
            flags += [f"--{name}", *map(str, parts)]
    command = [sys.executable, "-m", module, *flags]
    given = environment(os.environ, config.device)
    done = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
