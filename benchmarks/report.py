"""From figures to a table, a JSON file and a plot."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig, Device
from benchmarks.machine import versions
from layertap.model.config import DecoderConfig
from layertap.plan.planned import causal_pairs, forward_flops

Figures = Mapping[str, float]
Runs = Mapping[str, Sequence[Figures]]

_PADDED = "(a) transformers, padded batches of 4"
TITLES: Mapping[Device, Mapping[str, str]] = {
    "cpu": {
        "padded": _PADDED,
        "best": "(b) transformers, one sequence at a time",
        "layertap": "(c) Layertap, tasks to committed shards",
    },
    "gpu": {
        "padded": _PADDED,
        "best": "(b) transformers, sorted by length, copies beside the computation",
        "forward": "(c) Layertap, the same run, nothing written",
        "layertap": "(d) Layertap, tasks to committed shards",
    },
}
"""The rows of a table. On a GPU the whole run is bound by gzip, and transformers writes nothing:
hence one row more."""

_COLUMNS = {"forward": "Layertap, nothing written, is faster by", "layertap": "Layertap is faster by"}


def tokens_per_second(runs: Sequence[Figures]) -> float:
    """Return the median over runs, in real tokens a second."""
    return statistics.median(map(_rate, runs))


def _rate(run: Figures) -> float:
    return run["tokens"] / run["seconds"]


def model_gflop(config: DecoderConfig, layers: int, lengths: Sequence[int]) -> float:
    """Return what a forward pass over prompts of these lengths must compute at least, in GFLOP:
    products and causal attention.
    """
    return forward_flops(config, layers, sum(lengths), sum(map(causal_pairs, lengths))) / 1e9


def gflop_per_token(
    config: DecoderConfig, kept: Sequence[int], lengths: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return what each contender computes for each token, from the lengths of its prompts.

    Layertap ends at the last layer that is kept (none means all); transformers computes all layers.
    """
    own = max(kept, default=config.num_hidden_layers - 1) + 1
    layers = {name: own if name in _COLUMNS else config.num_hidden_layers for name in lengths}
    return {name: model_gflop(config, layers[name], given) / sum(given) for name, given in lengths.items()}


def of_ceiling(runs: Runs, gflop: Mapping[str, float]) -> dict[str, float]:
    """Return the share of the measured matrix products that each contender reached; the median."""
    return {
        name: tokens_per_second(runs[name]) * own / _median(runs["ceiling"], "gflops") for name, own in gflop.items()
    }


def table(title: str, runs: Runs, gflop: Mapping[str, float], device: Device) -> str:
    """One size's and dtype's table in Markdown."""
    rates = {name: tokens_per_second(runs[name]) for name in TITLES[device]}
    parts = of_ceiling(runs, gflop)
    columns = {name: column for name, column in _COLUMNS.items() if name in rates}
    head = [title, "tokens/s", *columns.values(), f"of {_median(runs['ceiling'], 'gflops'):,.0f} GFLOP/s"]
    rows = [head, ["---"] * len(head)]
    for name, said in TITLES[device].items():
        faster = ["" if name in columns else faster_by(runs[own], runs[name]) for own in columns]
        rows.append([said, f"{rates[name]:.0f}", *faster, f"{parts[name]:.0%}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def faster_by(own: Sequence[Figures], other: Sequence[Figures]) -> str:
    """Return how many times as fast as the other: the median of the turns, and their span.

    A ratio is of one turn, in which both met the same machine.
    """
    ratios = sorted(_rate(mine) / _rate(its) for mine, its in zip(own, other, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def waits(runs: Sequence[Figures]) -> str:
    """Say where Layertap's time went, in the median."""
    stages = [name for name in runs[0] if name.startswith("waited_")]
    shown = ", ".join(f"{name[7:]} {_median(runs, name):.1f} s" for name in stages)
    real = statistics.median(run["tokens"] / run["computed_tokens"] for run in runs)
    return f"Layertap waited for {shown}; {real:.1%} of computed tokens were real."


def written(runs: Runs) -> str:
    """Say how much Layertap wrote to disk, compared with the disk's own rate, in the median."""
    rate, disk = _writing_rate(runs), _median(runs["ceiling"], "disk_mb")
    megabytes = _median(runs["layertap"], "written_mb")
    return (
        f"It wrote {megabytes:,.0f} MB at {rate:.1f} MB/s: {rate / disk:.1%} of {disk:.0f} MB/s, sequential and synced."
    )


def result(runs: Runs, gflop: Mapping[str, float]) -> dict[str, Any]:
    """Return what is kept of one size and dtype: every run, and what follows from them."""
    medians = {
        name: {figure: _median(own, figure) for figure in own[0]}
        | ({"tokens_per_second": tokens_per_second(own)} if name in gflop else {})
        for name, own in runs.items()
    }
    return {
        "runs": runs,
        "medians": medians,
        "gflop_per_token": gflop,
        "of_ceiling": of_ceiling(runs, gflop),
        "of_disk": _writing_rate(runs) / _median(runs["ceiling"], "disk_mb"),
    }


def write_json(path: Path, config: BenchmarkConfig, machine: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write the results, with machine, versions and settings."""
    document: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine,
        "versions": versions(),
        "config": dataclasses.asdict(config),
        **found,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def plot(path: Path, results: Mapping[str, Runs], device: Device) -> None:
    """Tokens a second of each contender, as bars, for each size and dtype."""
    import matplotlib.pyplot as plt

    titles = TITLES[device]
    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 2.4), layout="constrained", squeeze=False)
    for axis, (title, runs) in zip(axes[0], results.items(), strict=True):
        rates = [tokens_per_second(runs[name]) for name in titles]
        bars = axis.barh(list(titles.values()) if axis is axes[0][0] else list("abcd"[: len(titles)]), rates)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=title, xlabel="real tokens a second", xlim=(0, 1.2 * max(rates)))
        axis.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _writing_rate(runs: Runs) -> float:
    return statistics.median(run["written_mb"] / run["seconds"] for run in runs["layertap"])


def _median(runs: Sequence[Figures], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)
