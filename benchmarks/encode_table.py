"""`--measure encode`: the table of formats by storage dtype by cores.

Contenders take turns: each format on one core, then on two, before the next turn. What two cores
bring is a ratio of each turn, and its median counts, with its smallest and largest. A core's rate
is by processor time, which other work beside these runs changes less than the clock.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from benchmarks.config import ContenderConfig
from benchmarks.workload import Figures
from layertap.config.extract import StorageDtype

Kind = tuple[Literal["safetensors", "pickle"], StorageDtype]

KINDS: tuple[Kind, ...] = (
    ("safetensors", "bfloat16"),
    ("safetensors", "float16"),
    ("safetensors", "float32"),
    ("safetensors", "float8_e4m3"),
    ("safetensors", "int8"),
    ("pickle", "bfloat16"),
    ("pickle", "float16"),
    ("pickle", "float32"),
)
PARTS = ("statistics", "conversion", "compression", "crc", "write")
_CORES = (1, 2)
_SHARD_GB = 0.3


def encode(config: ContenderConfig, run: Callable[[ContenderConfig], Figures]) -> str:
    """Make a table for each compute dtype."""
    cores = [count for count in _CORES if count <= len(os.sched_getaffinity(0))]
    base = replace(config, contender="encode", shard_size_gb=min(config.shard_size_gb, _SHARD_GB))
    tables = []
    for dtype in config.dtypes:
        turns = [
            {
                (kind, count): run(replace(base, dtype=dtype, format=kind[0], storage_dtype=kind[1], cores=count))
                for kind in KINDS
                for count in cores
            }
            for _ in range(config.repeats)
        ]
        tables.append(f"computed in {dtype}\n\n{table(turns, cores)}")
    return "\n\n".join(tables)


def table(turns: Sequence[Mapping[tuple[Kind, int], Figures]], cores: Sequence[int]) -> str:
    """One compute dtype's table in Markdown; bytes are those before compression."""
    head = ["", "MB/s a core", *(f"MB/s, {count} at once" for count in cores), "times"]
    head += [*(f"pipeline, {count}" for count in cores), "times", *PARTS, "waits for"]
    rows = [head, ["---"] * len(head)]
    for kind in dict.fromkeys(kind for kind, _ in turns[0]):
        of = {count: [turn[kind, count] for turn in turns] for count in cores}
        alone = [_rates(of[count], "encoded_bytes", "encode_seconds") for count in cores]
        whole = [_rates(of[count], "run_bytes", "run_seconds") for count in cores]
        one = of[cores[0]]
        rows.append(
            [
                " ".join(kind),
                f"{statistics.median(_rates(one, 'encoded_bytes', 'encode_processor')):.0f}",
                *(f"{statistics.median(rates):.0f}" for rates in alone),
                _times(alone),
                *(f"{statistics.median(rates):.0f}" for rates in whole),
                _times(whole),
                *(f"{_nanoseconds(one, part):.2f}" for part in PARTS),
                _waits(of[cores[-1]]),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rates(runs: Sequence[Figures], amount: str, seconds: str) -> list[float]:
    """Return the MB a second of each run."""
    return [run[amount] / run[seconds] / 1e6 for run in runs]


def _times(by_cores: Sequence[Sequence[float]]) -> str:
    """Return how much faster the most cores are than one: the median of the turns and the span."""
    ratios = [most / one for one, most in zip(by_cores[0], by_cores[-1], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _nanoseconds(runs: Sequence[Figures], part: str) -> float:
    """Processor time of a part, in ns a value."""
    return statistics.median(run[part] / run["values"] * 1e9 for run in runs)


def _waits(runs: Sequence[Figures]) -> str:
    """Return what the pipeline waited for, and for how much of its time."""
    shares = {
        name.removeprefix("waited_"): statistics.median(run[name] / run["run_seconds"] for run in runs)
        for name in runs[0]
        if name.startswith("waited_")
    }
    most = max(shares, key=lambda name: shares[name])
    return f"{most} {shares[most]:.0%}"
