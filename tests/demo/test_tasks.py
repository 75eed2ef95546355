import json
import subprocess
import sys

import pytest

from layertap.core.records import Pair, Task
from layertap.demo.tasks import FAMILIES, make_tasks, write_tasks


def pairs(task):
    return (*task.train, *task.test)


@pytest.fixture(scope="module", params=range(4))
def tasks(request):
    return make_tasks(2 * len(FAMILIES), seed=request.param)


def test_there_are_twenty_four_families_and_one_task_of_each_by_default():
    assert len(FAMILIES) == 24
    assert [task.task_id for task in make_tasks()] == [f"demo_{family.__name__}_00" for family in FAMILIES]


def test_every_grid_is_one_that_arc_allows_and_of_ordinary_ints(tasks):
    for grid in (grid for task in tasks for pair in pairs(task) for grid in (pair.input, pair.output)):
        assert 1 <= len(grid) <= 30
        assert len({len(row) for row in grid}) == 1 <= len(grid[0]) <= 30
        assert {cell for row in grid for cell in row} <= set(range(10))
        assert {type(cell) for row in grid for cell in row} == {int}


def test_no_answer_repeats_its_question_and_no_question_or_id_comes_twice(tasks):
    assert len({task.task_id for task in tasks}) == len(tasks)
    for task in tasks:
        assert all(pair.input != pair.output for pair in pairs(task))
        assert len({pair.input for pair in pairs(task)}) == len(pairs(task))


def test_asking_for_more_tasks_only_adds_to_the_end():
    assert make_tasks(30, seed=1)[:7] == make_tasks(7, seed=1)


def test_another_process_makes_the_same_tasks(tmp_path):
    script = (
        "import sys, pathlib, layertap.demo.tasks as t; t.write_tasks(pathlib.Path(sys.argv[1]), t.make_tasks(24, 3))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "there.jsonl"], check=True)
    write_tasks(tmp_path / "here.jsonl", make_tasks(24, 3))
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()


def test_a_line_holds_a_whole_task_without_the_answers_that_are_not_known(tmp_path):
    path = tmp_path / "deep" / "tasks.jsonl"
    task = Task("a", (Pair(((1,),), ((2, 0),)),), (Pair(((3,),), None),))
    write_tasks(path, [task, task])
    assert [json.loads(line) for line in path.read_text().splitlines()] == 2 * [
        {"task_id": "a", "train": [{"input": [[1]], "output": [[2, 0]]}], "test": [{"input": [[3]]}]}
    ]
