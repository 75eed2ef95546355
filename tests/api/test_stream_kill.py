"""A trainer that reads batches from a stream and is killed again and again misses no batch and sees
none twice.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

_TRAINER = """
import hashlib, json, os, sys
from itertools import islice
from pathlib import Path
import layertap

tasks, model, folder = sys.argv[1:]
saved, log = Path(folder, "state.json"), Path(folder, "log.txt")
stream = layertap.ActivationStream(
    dataset_path=tasks, model_path=model, layers_to_extract=[1, 3], row_length=1024, batch_size=2,
    predictions_per_task=2, window_samples=8,
)
batches = stream.batches(128, exclude={"first"}, center=True, scale="unit_rms", pool_tokens=2048, seed=1)
lines = []
if saved.exists():
    state = json.loads(saved.read_text())
    lines = state["lines"]
    batches.load_state_dict(state["batches"])
while batches.epoch < 2:
    for batch in batches:
        digest = hashlib.sha256(batch.activations.tobytes() + batch.token_ids.tobytes() + batch.samples.tobytes())
        lines.append(f"{batches.epoch} {digest.hexdigest()}")
        if len(lines) % 10 == 0:
            fresh = saved.with_suffix(".new")
            fresh.write_text(json.dumps({"lines": lines, "batches": batches.state_dict()}))
            os.replace(fresh, saved)
log.write_text("\\n".join(lines))
stream.close()
"""


def train(tasks: Path, model: Path, folder: Path, kill_after: float | None) -> bool:
    """Return whether the trainer came to its end."""
    script = folder / "train.py"
    script.write_text(_TRAINER)
    process = commands.start([script, tasks, model, folder], folder)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors
    return True


def require_same_after_kills(tasks: Path, model: Path, tmp_path: Path, kills: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    begun = time.monotonic()
    assert train(tasks, model, whole, None)
    took = time.monotonic() - begun
    moments = random.Random(7)
    count = 0
    while count < kills and not train(tasks, model, killed, moments.uniform(0.3, 0.95) * took):
        count += 1
    assert count == kills or (killed / "log.txt").exists()
    if count == kills:
        assert train(tasks, model, killed, None)
    assert (killed / "log.txt").read_text() == (whole / "log.txt").read_text()
    print(f"{count} kills, {len((whole / 'log.txt').read_text().splitlines())} batches", file=sys.stderr)


@pytest.mark.whole
def test_a_killed_trainer_goes_on_with_the_batches_that_would_have_come(
    few_tasks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    require_same_after_kills(few_tasks, tiny_model, tmp_path, 2)


@pytest.mark.slow
def test_ten_kills_change_no_batch(demo_tasks: Path, tiny_model: Path, tmp_path: Path) -> None:
    require_same_after_kills(demo_tasks, tiny_model, tmp_path, 10)


_LEFT = """
import sys
import layertap
stream = layertap.ActivationStream(
    dataset_path=sys.argv[1], model_path=sys.argv[2], layers_to_extract=[1], row_length=256, max_seq_length=4096
)
batches = stream.batches(64, pool_tokens=int(sys.argv[3]))
for number, batch in enumerate(batches):
    if number == 2:
        break
print("left", flush=True)
{end}
"""


_OTHER_ENDS = ["del batches, stream", "batches.close(); stream.close()", "held = iter(batches)"]


@pytest.mark.whole
@pytest.mark.parametrize("end", ["", *(pytest.param(end, marks=pytest.mark.slow) for end in _OTHER_ENDS)])
def test_python_ends_in_silence_inside_an_epoch(demo_tasks: Path, tiny_model: Path, tmp_path: Path, end: str) -> None:
    script = tmp_path / "leave.py"
    script.write_text(_LEFT.replace("{end}", end))
    done = commands.run([script, demo_tasks, tiny_model, "1024"], tmp_path)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("layertap ")]
    assert (done.stdout, errors, done.returncode) == ("left\n", [], 0)
