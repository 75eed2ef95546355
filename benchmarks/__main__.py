"""`python -m benchmarks`: the contenders take turns, and the medians go into a table, a JSON file and a plot."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks import report
from benchmarks.config import BenchmarkConfig, Contender, ContenderConfig, Dtype
from benchmarks.measures import MEASURES
from benchmarks.workload import Figures, model_folder, prompt_ids
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.model.config import read_config

_TURNS: tuple[Contender, ...] = ("ceiling", "padded", "best", "layertap")


def main() -> None:
    """Make what is missing, measure, and report."""
    config = _with_data(tyro.cli(BenchmarkConfig, use_underscores=True))
    os.environ.setdefault("JAX_PLATFORMS", {"cpu": "cpu", "gpu": "cuda"}[config.device])
    if config.measure == "compare":
        _compare(config)
    else:
        print(MEASURES[config.measure](config, run_alone))


def _compare(config: ContenderConfig) -> None:
    results: dict[str, report.Runs] = {dtype: _measure(config, dtype) for dtype in config.dtypes}
    shape = read_config(model_folder(config))
    lengths = [len(ids) for ids in prompt_ids(dataclasses.replace(config, baseline_tasks=config.tasks))]
    layers = max(config.layers, default=shape.num_hidden_layers - 1) + 1
    gflop_per_token = report.model_gflop(shape, layers, lengths) / sum(lengths)
    for dtype, runs in results.items():
        print(f"\n{report.table(dtype, runs, gflop_per_token)}\n\n{report.waits(runs['layertap'])}")
        print(report.written(runs))
    output = Path(config.output_dir)
    report.write_json(output / "results.json", config, results)
    report.plot(output / "results.png", results)
    print(f"\n{output / 'results.json'}, {output / 'results.png'}")


def _with_data(config: BenchmarkConfig) -> ContenderConfig:
    """The settings with a dataset and a checkpoint that are there."""
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    given = ContenderConfig(**dataclasses.asdict(config))
    if not (model_folder(given) / "config.json").exists():
        print(f"making {model_folder(given)}", file=sys.stderr)
        tokenizer = None if config.tokenizer is None else Path(config.tokenizer)
        write_checkpoint(model_folder(given), config.size, tokenizer=tokenizer)
    if given.dataset_path is not None:
        return given
    tasks = Path(config.output_dir) / "tasks.jsonl"
    write_tasks(tasks, make_tasks(4 * config.tasks if config.measure == "memory" else config.tasks))
    return dataclasses.replace(given, dataset_path=str(tasks))


def _measure(config: ContenderConfig, dtype: Dtype) -> report.Runs:
    runs: dict[str, list[report.Figures]] = {name: [] for name in _TURNS}
    run_alone(dataclasses.replace(config, contender="layertap", dtype=dtype, tasks=1))  # fills the compilation cache
    for turn in range(config.repeats):
        for name in _TURNS:
            figures = run_alone(dataclasses.replace(config, contender=name, dtype=dtype))
            runs[name].append(figures)
            print(f"{dtype} turn {turn + 1} {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return runs


def run_alone(config: ContenderConfig) -> Figures:
    """One contender's run in a process of its own."""
    flags = []
    for name, value in dataclasses.asdict(config).items():
        parts = value if isinstance(value, tuple) else (value,)
        if parts and parts != (None,):
            flags += [f"--{name}", *map(str, parts)]
    command = [sys.executable, "-m", "benchmarks.contenders", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
