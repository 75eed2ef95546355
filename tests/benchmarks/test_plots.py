"""The plots of the README: what is recorded for them, and that they are drawn from it."""

import json
from itertools import chain
from pathlib import Path

import pytest
from commands import ROOT

from benchmarks import plots
from layertap.demo.tasks import make_tasks, write_tasks

FIGURES = json.loads((ROOT / "docs/pictures/figures.json").read_text())


@pytest.mark.parametrize("row", FIGURES["speed"], ids=lambda row: row["name"])
@pytest.mark.parametrize("contender", ["padded", "single"])
def test_the_speeds_are_those_of_the_results(row: dict[str, float], contender: str) -> None:
    assert f"{row[contender]:.2f}" in (ROOT / "benchmarks/RESULTS.md").read_text()


def test_each_plot_is_drawn_from_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_PICTURES", tmp_path)
    speed = [{"name": "A processor", "padded": 7.31, "single": 0.42}]
    plots.draw(FIGURES | {"speed": speed})
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(drawn) == {"packing.svg", "speed.svg", "resume.svg"}
    assert {"A processor", "7.31", "0.42"} <= set(_comments(drawn["speed.svg"]))
    assert f"killed {len(FIGURES['resume']['killed']['deaths'])} times" in _comments(drawn["resume.svg"])


def test_packing_places_each_prompt_once(tiny_model: Path, demo_tasks: Path) -> None:
    recorded = plots.record_packing(str(demo_tasks), str(tiny_model))
    assert len(recorded["lengths"]) >= 10
    assert sorted(chain.from_iterable(row["samples"] for row in recorded["rows"])) == sorted(recorded["lengths"])
    assert all(sum(row["samples"]) <= row["length"] for row in recorded["rows"])


@pytest.mark.whole
def test_a_run_that_is_killed_is_recorded_until_its_end(tmp_path: Path, tiny_model: Path) -> None:
    """The kill comes right after the first of two dozen commits."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(6, seed=0))
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    runs = [plots._watch(tmp_path, calm, []), plots._watch(tmp_path, killed, [0.0])]
    assert [len(run["deaths"]) for run in runs] == [0, 1]
    for run in runs:
        moments, tokens = zip(*run["points"], strict=True)
        assert list(moments) == sorted(moments)
        assert list(tokens) == sorted(set(tokens))
    assert runs[0]["points"][-1][1] == runs[1]["points"][-1][1] > 0
    assert plots._digest(calm) == plots._digest(killed)


def _comments(svg: str) -> list[str]:
    """Return the texts of a picture, which matplotlib repeats as comments beside their outlines."""
    return [part.partition("-->")[0].strip() for part in svg.split("<!--")[1:]]
