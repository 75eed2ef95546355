"""`layertap inspect` of ARC prompts: what differs, grids in colour, the largest norms."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from runs import finished, out, small_run

import layertap
from layertap.cli import main
from layertap.core.columns import NO_LABELS
from layertap.view.grids import Colours, colours_of, draw_grids


@pytest.fixture(scope="module")
def run(few_tasks: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_run(few_tasks, tiny_model, tmp_path_factory.mktemp("run"), format="safetensors", shard_size_gb=1.0)
    finished(config)
    return out(config)


def look(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_shard_says_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = look(capsys, "inspect", run)
    for sample in layertap.ActivationDataset(run):
        change = sample.origin["augmentation"]
        (line,) = re.findall(rf"^ *{sample.sample_idx}  {sample.task_id}.*$", text, re.MULTILINE)
        assert f"test {sample.origin['test_index'] + 1}, prediction {sample.origin['prediction']}: " in line
        assert ("mirrored" in line) == change["flip"]
        assert line.endswith("colours " + "".join(map(str, change["colors"])))


def test_the_largest_norms_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = look(capsys, "inspect", run, "--top", "5", "--layer", "3").splitlines()[-5:]
    dataset = layertap.ActivationDataset(run)
    norms = sorted((float(norm) for sample in dataset for norm in sample.norms(3)), reverse=True)
    assert [line.split()[0] for line in lines] == [f"{norm:.5g}" for norm in norms[:5]]
    cells = lines[0].split()
    sample = dataset.sample(int(cells[3]))
    assert f"{sample.norms(3)[int(cells[5])]:.5g}" == cells[0]
    of_sample = look(capsys, "inspect", run, "--sample", cells[3], "--top", "1", "--layer", "3", "--max_tokens", "1")
    assert lines[0].split() in [line.split() for line in of_sample.splitlines()]


def test_a_sample_is_found_by_its_task(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = min(layertap.ActivationDataset(run)[5:], key=lambda it: it.sample_idx)
    first = min(it.sample_idx for it in layertap.ActivationDataset(run) if it.task_id == sample.task_id)
    assert f"sample {first} of task {sample.task_id}: " in look(capsys, "inspect", run, "--sample", sample.task_id)
    assert main(["inspect", str(run), "--sample", "no such task"]) == 2
    assert "no sample is of this task" in capsys.readouterr().err


def seen(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


@pytest.mark.parametrize("colours", ["none", "256", "24-bit"])
def test_grids_have_their_colours_and_shades(run: Path, colours: Colours) -> None:
    sample = layertap.ActivationDataset(run)[0]
    labels = {name: sample.column(name) for name in NO_LABELS}
    lines = list(draw_grids(labels, sample.norms(3), colours))
    grids = sample.labels.grids()
    names = [line for line in lines if not line.startswith(" ")]
    assert names == [f"example {pair + 1}" for pair, _ in list(grids)[:-1:2] if pair != "test"] + ["test"]
    first = grids[0, "input"]
    assert first is not None
    drawn = lines[2 : 2 + len(first)]
    if colours == "none":
        assert [[int(char) for char in line[2 : 2 + 2 * len(first[0]) : 2]] for line in drawn] == list(map(list, first))
    else:
        codes = {"256": (16, 32, 203, 41, 220, 248, 199, 208, 117, 88)}.get(colours)
        for line, row in zip(drawn, first, strict=True):
            found = re.findall(r"48;[25];([0-9;]+)m", line)[: len(row)]
            if codes is not None:
                assert list(map(int, found)) == [codes[color] for color in row]
            else:
                assert found[0] == {0: "0;0;0"}.get(row[0], found[0])
                assert len(set(zip(found, row, strict=True))) == len(set(row))
    shades = "".join(seen(line) for line in lines if line.startswith("  "))
    assert all(shade in shades for shade in "\u2591\u2592\u2593\u2588")


def test_the_largest_norms_are_drawn_full(run: Path) -> None:
    sample = layertap.ActivationDataset(run)[0]
    labels = {name: sample.column(name) for name in NO_LABELS}
    cells = np.flatnonzero(labels["cells"] == 1)
    norms = np.ones(len(sample), np.float32)
    norms[cells[7]] = 100
    lines = list(draw_grids(labels, norms, "none"))
    assert sum(line.count("\u2588") for line in lines) >= 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"COLORTERM": "truecolor", "TERM": "xterm"}, "24-bit"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "dumb"}, "none"),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, "none"),
    ],
    ids=str,
)
def test_a_terminal_gets_the_colours_that_it_has(environment: dict[str, str], colours: str) -> None:
    assert colours_of(Terminal(), environment) == colours
    assert colours_of(io.StringIO(), environment) == "none"


def test_view_shows_one_sample_in_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = layertap.ActivationDataset(run)[2]
    text = look(capsys, "view", run, "--terminal", "--samples", str(sample.sample_idx), "--layers", "3")
    assert text == look(capsys, "inspect", run, "--sample", str(sample.sample_idx), "--layer", "3")
    parent = look(capsys, "view", run.parent, "--terminal", "--samples", str(sample.sample_idx), "--layers", "3")
    assert parent == text
