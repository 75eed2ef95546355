"""A folder is its `*.json` files by name; what in it is no task is either known for what it is, or a bad record."""

import json

import pytest

from layertap.core.records import BadTask, Task
from layertap.dataset import read_records
from layertap.errors import DatasetError

_TASK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}


def _fill(folder, **files: object) -> str:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


def test_a_folder_as_kaggle_hands_it_out_reads_its_challenges_with_their_answers(tmp_path):
    folder = _fill(
        tmp_path,
        sample_submission={"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]},
        x_challenges={"a": _TASK, "b": _TASK},
        x_solutions={"a": [[[4]]], "b": [[[5]]]},
        zz=_TASK,
    )

    records = list(read_records(folder))
    assert [(record.task_id, record.test[0].output) for record in records] == [
        ("a", ((4,),)),
        ("b", ((5,),)),
        ("zz", None),
    ]


def test_solutions_without_challenges_are_a_bad_record(tmp_path):
    folder = _fill(tmp_path, a=_TASK, x_solutions={"a": [[[4]]]})
    task, bad = read_records(folder)

    assert isinstance(task, Task)
    assert (bad.where, bad.task_id) == (f"{folder}/x_solutions.json", None)


@pytest.mark.parametrize("text", ["", "{", '{"name": "x"}', "[]"])
def test_a_file_that_is_no_task_is_one_bad_record(tmp_path, text):
    folder = _fill(tmp_path, a=_TASK, c=_TASK)
    (tmp_path / "b.json").write_text(text)

    assert [type(record) for record in read_records(folder)] == [Task, BadTask, Task]


def test_numbers_made_into_ids_go_on_from_file_to_file(tmp_path):
    folder = _fill(tmp_path, a=[_TASK, _TASK], b=[_TASK])

    assert [task.task_id for task in read_records(folder)] == ["task_00000000", "task_00000001", "task_00000002"]


def test_other_names_hidden_files_and_folders_are_left_out(tmp_path):
    folder = _fill(tmp_path, a=_TASK)
    (tmp_path / "._a.json").write_text("finder's own")
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "b.json").mkdir()

    assert [task.task_id for task in read_records(folder)] == ["a"]


def test_a_link_is_a_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    _fill(tmp_path / "real", a=_TASK)
    (tmp_path / "links" / "b.json").symlink_to(tmp_path / "real" / "a.json")

    assert [task.task_id for task in read_records(str(tmp_path / "links"))] == ["b"]


def test_a_folder_without_tasks_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "evaluation").mkdir()

    with pytest.raises(DatasetError, match=r"it holds evaluation, training; give one of its files or folders"):
        list(read_records(str(tmp_path)))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="it is empty"):
        list(read_records(str(tmp_path)))
