"""Real processes that are killed or stopped: in the end their output equals that of an undisturbed
one.
"""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from kills import Machine, Scenario

from layertap.core.amounts import amount
from layertap.demo.tasks import make_tasks, write_tasks

KILLS = 10


@pytest.fixture
def new_machine(tiny_model: Path, tmp_path: Path) -> Callable[..., Machine]:
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(24, seed=1))

    def new(name: str, form: str = "pickle") -> Machine:
        return Machine(tmp_path / name, tiny_model, tmp_path / "tasks.jsonl", Scenario(form, bucket=False))

    return new


def wait_for_shards(machine: Machine, count: int) -> None:
    while machine.process.poll() is None and machine.committed() < count:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_killed_at_ten_moments_and_resumed_gives_the_same_bytes(new_machine: Callable[..., Machine], form: str) -> None:
    whole, killed = new_machine("whole", form), new_machine("killed", form)
    whole.run_to_the_end()
    total = whole.committed()
    assert total >= 2 * KILLS

    chance = random.Random(0)
    moments = []
    for kill in range(KILLS):
        process = killed.start()
        if kill:  # the first is killed while it starts
            wait_for_shards(killed, killed.committed() + total // (KILLS + 2))
        time.sleep(chance.random() * 0.15)
        killed.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        moments.append(killed.committed())
    assert len(set(moments)) >= KILLS // 2  # most kills fell at a stage of their own
    print("killed with so many shards committed:", moments, "of", total)
    assert "resumed after" in killed.run_to_the_end()
    assert killed.local_contents() == whole.local_contents()


@pytest.mark.parametrize("notice", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_says_so_and_goes_on(new_machine: Callable[..., Machine], notice: int) -> None:
    machine = new_machine("interrupted")
    process = machine.start()
    wait_for_shards(machine, 1)
    process.send_signal(notice)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    assert "Traceback" not in errors
    committed = machine.committed()
    assert f"continuing after {amount(committed, 'shard')}, " in machine.run_to_the_end()
    verified = commands.run(["-m", "layertap", "verify", "activations"], machine.folder)
    assert verified.returncode == 0, verified.stdout
