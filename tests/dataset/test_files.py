"""What a folder holds, and how Kaggle's answers join their tasks."""

import json

import pytest

from layertap.core.records import BadTask, Task
from layertap.dataset import read_records
from layertap.errors import DatasetError

_TRAIN = [{"input": [[1]], "output": [[2]]}]
_TASK = {"train": _TRAIN, "test": [{"input": [[3]]}]}


def _fill(folder, **files: object) -> str:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


def _read_kaggle(folder, task: object, solutions: object, **options) -> list:
    return list(
        read_records(f"{_fill(folder, x_challenges={'a': task}, x_solutions=solutions)}/x_challenges.json", **options)
    )


def test_a_folder_as_kaggle_hands_it_out_reads_its_challenges_with_their_answers(tmp_path):
    folder = _fill(
        tmp_path,
        sample_submission={"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]},
        x_challenges={"a": _TASK, "b": _TASK},
        x_solutions={"a": [[[4]]], "b": [[[5]]]},
        zz=_TASK,
    )

    read = [(record.task_id, record.test[0].output) for record in read_records(folder)]
    assert read == [("a", ((4,),)), ("b", ((5,),)), ("zz", None)]


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


def test_links_are_files_and_other_names_hidden_files_and_folders_are_left_out(tmp_path):
    folder = tmp_path / "folder"
    (folder / "b.json").mkdir(parents=True)
    (folder / "._a.json").write_text("finder's own")
    (folder / "readme.txt").write_text("about")
    (folder / "c.json").symlink_to(tmp_path / "a.json")
    _fill(tmp_path, a=_TASK)
    _fill(folder, a=_TASK)

    assert [task.task_id for task in read_records(str(folder))] == ["a", "c"]


def test_a_folder_without_tasks_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(DatasetError, match="it is empty"):
        list(read_records(str(tmp_path)))
    (tmp_path / "training").mkdir()
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(DatasetError, match=r"the folder has no data files \(.*\); it holds evaluation, training"):
        list(read_records(str(tmp_path)))


@pytest.mark.parametrize(
    ("solutions", "reason"),
    [
        ({"a": [[[1]]]}, "has 2 test inputs, but {} has 1 outputs for it"),
        ({"a": [[[1]], [[2]], [[3]]]}, "has 2 test inputs, but {} has 3 outputs for it"),
        ({"b": [[[1]], [[2]]]}, "{} has no entry for it, not a list of outputs"),
        ({"a": 5}, "{} has a number for it, not a list of outputs"),
        ({"a": [[[5]], [[6]]]}, "test pair 2 has another output than {} has for it"),
    ],
)
def test_answers_that_do_not_fit_are_a_bad_record(tmp_path, solutions, reason):
    task = {"train": _TRAIN, "test": [{"input": [[3]]}, {"input": [[4]], "output": [[4]]}]}

    where = f"{tmp_path}/x_challenges.json key 'a'"
    assert _read_kaggle(tmp_path, task, solutions) == [
        BadTask(where, "a", reason.format(tmp_path / "x_solutions.json"))
    ]


def test_a_malformed_answer_is_named_with_its_file(tmp_path):
    (bad,) = _read_kaggle(tmp_path, _TASK, {"a": [[[5], [5, 5]]]})

    assert bad.where.endswith(f"x_challenges.json key 'a' (answers from {tmp_path}/x_solutions.json)")
    assert bad.reason == "test pair 1 output: row 2 has 2 cells, row 1 has 1"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (5, "is a number, not an object with 'train' and 'test'"),
        ({"train": _TRAIN}, "lacks 'test'"),
        ({"train": _TRAIN, "test": [5]}, "test pair 1 is a number, not an object with 'input' and 'output'"),
    ],
)
def test_a_malformed_challenge_is_named_as_one(tmp_path, task, reason):
    (bad,) = _read_kaggle(tmp_path, task, {"a": [[[1]]]}, dataset_format="kaggle")

    assert bad.reason == reason


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not JSON: .*; fix the solutions file"), ("[]", "is a list, not an object"), ("", "is empty")],
)
def test_a_solutions_file_that_is_none_ends_the_reading(tmp_path, text, complaint):
    path = f"{_fill(tmp_path, x_challenges={'a': _TASK})}/x_challenges.json"
    (tmp_path / "x_solutions.json").write_text(text)

    with pytest.raises(DatasetError, match=f"x_solutions.json: {complaint}"):
        list(read_records(path))
