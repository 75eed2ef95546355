"""The plots of the README, from recorded figures: `python -m benchmarks.plots`.

    packing   the first ARC prompts as rows: padded batches of four, and packed
    speed     tokens/s beside transformers, processor by processor, slower cases too
    resume    tokens that were committed over time, by a run that was killed again and again

What was measured is in `docs/pictures/figures.json`, so that a plot can be drawn again without a
measurement. `--record packing` and `--record resume` measure those two; the speeds are copied by
hand from RESULTS.md, which says how each was made. Drawing needs matplotlib (the extra `examples`).
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.workload import arc_prompts

_PICTURES = Path("docs/pictures")
_FIGURES = _PICTURES / "figures.json"
_OURS, _THEIRS, _WASTE, _INK = "#0072b2", "#e69f00", "#d9d9d9", "#24292f"
_BATCH = 4
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


@dataclass(frozen=True)
class PlotConfig:
    """Draw the plots of the README, or measure what they show."""

    record: Literal["packing", "resume"] | None = None
    """What to measure first."""
    dataset_path: str | None = None
    """ARC tasks, to record packing."""
    tokenizer: str | None = None
    """A folder with the tokenizer, to record packing."""
    demo: str = "layertap-demo"
    """What `layertap demo` made, to record resume."""
    kills: int = 5
    """How often the run is killed."""


# ---- measuring ----------------------------------------------------------------------------------


def record_packing(dataset_path: str, tokenizer: str) -> dict[str, Any]:
    """Record the lengths of the first whole prompts, and where packing puts them; no prefix is
    shared.
    """
    from layertap.config.extract import ExtractConfig
    from layertap.pipeline.packing import pack_window, row_ladder

    lengths = [len(ids) for ids in arc_prompts(dataset_path, Path(tokenizer), 24)][:24]
    ladder = row_ladder(ExtractConfig(dataset_path=dataset_path).row_length, max(lengths))
    rows = [
        {"length": step.length, "samples": [place.length for place in step.placements]}
        for step in pack_window(lengths, ladder, 1)
    ]
    return {"lengths": lengths, "rows": rows}


def record_resume(demo: Path, kills: int) -> dict[str, Any]:
    """Record the tokens committed over time by an undisturbed run, and by one that is killed."""
    calm, killed = demo / "plot" / "calm", demo / "plot" / "killed"
    alone = _watch(demo, calm, [])
    (begun, _), (ended, _) = alone["points"][1], alone["points"][-1]
    draw = random.Random(0)
    # Together less than the run, so that all of them come before its end.
    moments = [draw.uniform(0.3, 0.9) / kills * (ended - begun) for _ in range(kills)]
    found = {"calm": alone, "killed": _watch(demo, killed, moments)}
    if _digest(calm) != _digest(killed):
        sys.exit(f"{killed} is not byte for byte {calm}")
    if len(found["killed"]["deaths"]) < kills:
        sys.exit(f"the run ended before it was killed {kills} times; record again where less else runs")
    return found


def _watch(demo: Path, folder: Path, kills: Sequence[float]) -> dict[str, list[Any]]:
    """Run to the end, with SIGKILL so many seconds after a process committed for the first time.
    Return [seconds, tokens] and when it was killed.
    """
    folder.mkdir(parents=True)
    output, begun = folder / "activations", time.perf_counter()
    points: list[tuple[float, int]] = [(0.0, 0)]
    deaths: list[float] = []
    while True:
        process = subprocess.Popen(_command(demo), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        first = points[-1][1]
        seen: float | None = None
        while process.poll() is None:
            now = time.perf_counter() - begun
            if (tokens := _committed(output)) > points[-1][1]:
                points.append((round(now, 2), tokens))
            seen = now if seen is None and points[-1][1] > first else seen
            if len(deaths) < len(kills) and seen is not None and now > seen + kills[len(deaths)]:
                process.kill()
                process.wait()
                deaths.append(round(now, 2))
            time.sleep(0.02)
        if process.returncode == 0:
            return {"points": points, "deaths": deaths}
        if process.returncode > 0:  # it failed by itself, and would again
            sys.exit(f"{' '.join(_command(demo))} failed in {folder}; run it there to see why")


def _command(demo: Path) -> list[str]:
    source = ["--dataset_path", str(demo.resolve() / "tasks.jsonl"), "--model_path", str(demo.resolve() / "model")]
    return [sys.executable, "-m", "layertap", "extract", *source, "--shard_size_gb", "0.004"]


def _committed(output: Path) -> int:
    from layertap.errors import LayertapError
    from layertap.reader.dataset import ActivationDataset

    with suppress(LayertapError):
        return ActivationDataset(output).tokens
    return 0


def _digest(folder: Path) -> dict[str, str]:
    """By file, without the log of times."""
    files = (path for path in (folder / "activations").rglob("*") if path.is_file() and path.name != "metrics.jsonl")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- drawing ------------------------------------------------------------------------------------


def draw(figures: Mapping[str, Any]) -> None:
    """Write the three plots as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "layertap", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    mpl.rcParams |= {"text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK}
    from matplotlib import pyplot

    for name, paint, size in (
        ("packing", _paint_packing, (7.2, 2.8)),
        ("speed", _paint_speed, (7.2, 3.2)),
        ("resume", _paint_resume, (7.2, 2.4)),
    ):
        figure = pyplot.figure(figsize=size, layout="constrained", facecolor="white")
        paint(figure, figures[name])
        figure.savefig(_PICTURES / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _paint_packing(figure: Any, recorded: Mapping[str, Any]) -> None:  # noqa: ANN401 - of matplotlib
    lengths: Sequence[int] = recorded["lengths"]
    padded = []
    for first in range(0, len(lengths), _BATCH):
        batch = lengths[first : first + _BATCH]
        padded += [{"length": max(batch), "samples": [length]} for length in batch]
    packed = sorted(recorded["rows"], key=lambda row: row["length"])
    for axis, rows, name in zip(
        figure.subplots(1, 2, sharex=True), (padded, packed), ("padded by four", "packed"), strict=True
    ):
        real, computed = sum(lengths), sum(row["length"] for row in rows)
        for place, row in enumerate(rows):
            axis.barh(place, row["length"], color=_WASTE, height=0.8)
            begin = 0
            for length in row["samples"]:
                axis.barh(place, length, left=begin, color=_OURS, height=0.8, edgecolor="white", linewidth=0.6)
                begin += length
        axis.set_title(f"{name}: {real / computed:.0%} of {computed:,} tokens are real", fontsize=9)
        axis.invert_yaxis()
        axis.set_yticks([])
        axis.set_xlabel("tokens of a row")


def _paint_speed(figure: Any, recorded: Sequence[Mapping[str, Any]]) -> None:  # noqa: ANN401
    axis = figure.subplots()
    for place, row in enumerate(recorded):
        for shift, key, color in ((-0.2, "padded", _WASTE), (0.2, "single", _THEIRS)):
            ratio = row[key]
            axis.barh(place + shift, ratio, height=0.36, color=color)
            axis.text(ratio + 0.05, place + shift, f"{ratio:.2f}", va="center", bbox=_BEHIND)
    axis.axvline(1, color=_INK, linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(recorded)), [row["name"] for row in recorded])
    axis.invert_yaxis()
    axis.set_xlabel("Layertap's tokens/s over those of transformers: 1 is as fast")
    names = ("padded batches of four", "one sequence at a time, its best")
    handles = [axis.barh(0, 0, color=color) for color in (_WASTE, _THEIRS)]
    axis.legend(handles, names, frameon=False, loc="lower right")


def _paint_resume(figure: Any, recorded: Mapping[str, Any]) -> None:  # noqa: ANN401
    axis = figure.subplots()
    for name, color in (("calm", _WASTE), ("killed", _OURS)):
        points = recorded[name]["points"]
        label = "left alone" if name == "calm" else f"killed {len(recorded[name]['deaths'])} times"
        axis.step([x for x, _ in points], [y for _, y in points], where="post", color=color, linewidth=2, label=label)
    for number, moment in enumerate(recorded["killed"]["deaths"]):
        axis.axvline(moment, color="#d55e00", linestyle=":", label="SIGKILL" if number == 0 else None)
    axis.set_xlabel("seconds")
    axis.set_ylabel("tokens committed")
    axis.set_title("The files are the same, byte for byte", fontsize=9)
    figure.legend(frameon=False, loc="outside right upper")  # a kill may be anywhere on the axes


def main() -> None:
    """Measure what was asked for, then draw all three."""
    config = tyro.cli(PlotConfig)
    figures: dict[str, Any] = json.loads(_FIGURES.read_text(encoding="utf-8"))
    if config.record == "packing":
        figures["packing"] = record_packing(str(config.dataset_path), str(config.tokenizer))
    elif config.record == "resume":
        figures["resume"] = record_resume(Path(config.demo), config.kills)
    lines = (f'"{name}": {json.dumps(value)}' for name, value in figures.items())  # a line a plot
    _FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    draw(figures)


if __name__ == "__main__":
    main()
