"""A killed export continues, and ends like an undisturbed one, byte for byte."""

import os
import random
import signal
import time
from pathlib import Path

import commands
import exports
import numpy as np
import outputs
import pytest

from layertap.core.taps import Tap
from layertap.shards.form import ShardFormat

SHARDS = 40
WIDTHS = {Tap(layer, "residual"): 32 for layer in (0, 2)}
BEGIN = ("-m", "layertap", "export")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty shards, each with a sample of 700 tokens."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    samples = [outputs.sample(index, 700, widths=WIDTHS) for index in range(SHARDS)]
    form = ShardFormat(WIDTHS, np.dtype(np.float32), False, "safetensors", False)
    outputs.write(folder, [[sample] for sample in samples], form)
    return folder


def start_and_kill(arguments: list[str], folder: Path, files: int) -> bool:
    """Kill the command when it has written so many more files.

    Return whether it was still running.
    """
    out = Path(arguments[1])
    before = len(list(out.rglob("*")))
    process = commands.start([*BEGIN, *arguments], folder)
    while process.poll() is None and len(list(out.rglob("*"))) < before + files:
        time.sleep(0.0005)
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), output + errors
    return process.returncode != 0


@pytest.mark.whole
@pytest.mark.parametrize("form", exports.FORMS)
def test_killed_again_and_again(form: str, run: Path, tmp_path: Path) -> None:
    options = ["--to", form, "--dtype", "float16"]
    there = commands.run([*BEGIN, str(run), str(tmp_path / "undisturbed"), *options], tmp_path)
    assert there.returncode == 0, there.stderr
    chance, kills = random.Random(form), 0
    for _ in range(3):
        kills += start_and_kill([str(run), str(tmp_path / "killed"), *options], tmp_path, chance.randrange(2, 25))
    assert kills, "it had ended each time"
    here = commands.run([*BEGIN, str(run), str(tmp_path / "killed"), *options], tmp_path)
    assert here.returncode == 0, here.stderr
    assert exports.contents(tmp_path / "killed") == exports.contents(tmp_path / "undisturbed")
    assert here.stdout.splitlines()[1:] == there.stdout.splitlines()[1:]


@pytest.mark.whole
@pytest.mark.parametrize("form", exports.FORMS)
def test_what_is_there_is_not_written_again(form: str, run: Path, tmp_path: Path) -> None:
    arguments = [*BEGIN, str(run), str(tmp_path / "out"), "--to", form]
    assert commands.run(arguments, tmp_path).returncode == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*shard_*")}
    written |= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
    lost = max(written)
    lost.unlink()
    assert commands.run(arguments, tmp_path).returncode == 0
    again = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert lost in again
    assert len(again) <= 5, "only the files of one shard"
