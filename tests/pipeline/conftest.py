from pathlib import Path

import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from kills import Machine, NewMachine, Scenario
from runs import small_run

from layertap.config.extract import ExtractConfig
from layertap.demo.tasks import make_tasks, write_tasks


@pytest.fixture
def config(tiny_model: Path, few_tasks: Path, tmp_path: Path) -> ExtractConfig:
    return small_run(few_tasks, tiny_model, tmp_path)


@pytest.fixture
def scenario() -> dict[str, object]:
    """The fields of `Scenario` that are the same for all machines of a test file."""
    return {}


@pytest.fixture
def new_machine(tiny_model: Path, tmp_path: Path, gcs: FakeGcs, scenario: dict[str, object]) -> NewMachine:
    """A function that makes a machine by its name. All of them run the same tasks and have a
    bucket.
    """
    write_tasks(tmp_path / "tasks.jsonl", make_tasks(12, seed=1))

    def new(name: str, server: FakeGcs = gcs, **own: object) -> Machine:
        settled = Scenario(**(scenario | own))  # type: ignore[arg-type]
        return Machine(tmp_path / name, tiny_model, tmp_path / "tasks.jsonl", settled, server)

    return new


@pytest.fixture
def whole(new_machine: NewMachine) -> Machine:
    """A machine whose run was not disturbed. It has its own bucket."""
    with FakeGcs(BUCKET) as server:
        machine = new_machine("whole", server)
        machine.run_to_the_end()
    return machine
