"""From figures to a table, a JSON file and a plot."""

import dataclasses
import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig
from layertap.model.config import Qwen2Config
from layertap.plan.flops import causal_pairs, forward_flops

Figures = Mapping[str, float]
Runs = Mapping[str, Sequence[Figures]]

_NAMES = {
    "padded": "(a) transformers, padded batches of 4",
    "best": "(b) transformers, one sequence at a time",
    "layertap": "(c) Layertap, tasks to committed shards",
}


def tokens_per_second(runs: Sequence[Figures]) -> float:
    """The median over runs, in real tokens a second."""
    return statistics.median(run["tokens"] / run["seconds"] for run in runs)


def model_gflop(config: Qwen2Config, layers: int, lengths: Sequence[int]) -> float:
    """What a forward pass over prompts of these lengths must compute at least, in GFLOP: products and causal
    attention.
    """
    return forward_flops(config, layers, sum(lengths), sum(map(causal_pairs, lengths))) / 1e9


def table(dtype: str, runs: Runs, gflop_per_token: float) -> str:
    """One dtype's table in Markdown."""
    ceiling = statistics.median(run["gflops"] for run in runs["ceiling"])
    rates = {name: tokens_per_second(runs[name]) for name in _NAMES}
    lines = [f"| {dtype} | tokens/s | Layertap is faster by | of {ceiling:.0f} GFLOP/s |", "| --- | --- | --- | --- |"]
    for name, title in _NAMES.items():
        faster = f"{rates['layertap'] / rates[name]:.2f}" if name != "layertap" else ""
        lines.append(f"| {title} | {rates[name]:.0f} | {faster} | {rates[name] * gflop_per_token / ceiling:.0%} |")
    return "\n".join(lines)


def waits(runs: Sequence[Figures]) -> str:
    """Where Layertap's time went, in the median."""
    stages = [name for name in runs[0] if name.startswith("waited_")]
    shown = ", ".join(f"{name[7:]} {statistics.median(run[name] for run in runs):.1f} s" for name in stages)
    real = statistics.median(run["tokens"] / run["computed_tokens"] for run in runs)
    return f"Layertap waited for {shown}; {real:.1%} of computed tokens were real."


def written(runs: Runs) -> str:
    """What Layertap put on disk, beside what the disk takes, in the median."""
    rate = statistics.median(run["written_mb"] / run["seconds"] for run in runs["layertap"])
    disk = statistics.median(run["disk_mb"] for run in runs["ceiling"])
    megabytes = statistics.median(run["written_mb"] for run in runs["layertap"])
    return (
        f"It wrote {megabytes:,.0f} MB at {rate:.1f} MB/s: {rate / disk:.1%} of {disk:.0f} MB/s, sequential and synced."
    )


def write_json(path: Path, config: BenchmarkConfig, results: Mapping[str, Runs]) -> None:
    """Every run's figures, with machine and versions."""
    packages = ("layertap", "jax", "jaxlib", "flax", "numpy", "torch", "transformers", "isal")
    document: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": {"platform": platform.platform(), "processor": _processor()},
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config": dataclasses.asdict(config),
        "results": results,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def plot(path: Path, results: Mapping[str, Runs]) -> None:
    """Tokens a second of each contender, as bars."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 2.4), layout="constrained", squeeze=False)
    for axis, (dtype, runs) in zip(axes[0], results.items(), strict=True):
        rates = [tokens_per_second(runs[name]) for name in _NAMES]
        bars = axis.barh(list(_NAMES.values()) if axis is axes[0][0] else ["a", "b", "c"], rates)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=dtype, xlabel="real tokens a second", xlim=(0, 1.2 * max(rates)))
        axis.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
