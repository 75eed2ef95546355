"""Answers join their tasks by the index of the test input, or the task is refused with the solutions file's name."""

import json

import pytest

from layertap.core.records import BadTask
from layertap.dataset import read_records
from layertap.errors import DatasetError

_TRAIN = [{"input": [[1]], "output": [[2]]}]


def _read(tmp_path, task: object, solutions: object):
    (tmp_path / "x_challenges.json").write_text(json.dumps({"a": task}))
    (tmp_path / "x_solutions.json").write_text(json.dumps(solutions))
    return list(read_records(str(tmp_path / "x_challenges.json")))


@pytest.mark.parametrize(
    ("solutions", "reason"),
    [
        ({"a": [[[1]]]}, "has 2 test inputs, but {} has 1 outputs for it"),
        ({"a": [[[1]], [[2]], [[3]]]}, "has 2 test inputs, but {} has 3 outputs for it"),
        ({"b": [[[1]], [[2]]]}, "{} has no entry for it, not a list of outputs"),
        ({"a": 5}, "{} has a number for it, not a list of outputs"),
    ],
)
def test_answers_that_do_not_fit_are_a_bad_record(tmp_path, solutions, reason):
    records = _read(tmp_path, {"train": _TRAIN, "test": [{"input": [[3]]}, {"input": [[4]]}]}, solutions)

    where = f"{tmp_path}/x_challenges.json key 'a'"
    assert records == [BadTask(where, "a", reason.format(tmp_path / "x_solutions.json"))]


def test_an_answer_other_than_the_known_one_is_a_bad_record(tmp_path):
    (bad,) = _read(tmp_path, {"train": _TRAIN, "test": [{"input": [[3]], "output": [[4]]}]}, {"a": [[[5]]]})

    assert bad.reason == f"test pair 1 has another output than {tmp_path}/x_solutions.json has for it"


def test_a_malformed_answer_is_told_with_its_file(tmp_path):
    (bad,) = _read(tmp_path, {"train": _TRAIN, "test": [{"input": [[3]]}]}, {"a": [[[5], [5, 5]]]})

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
def test_a_malformed_challenge_is_told_as_one(tmp_path, task, reason):
    path = tmp_path / "x_challenges.json"
    path.write_text(json.dumps({"a": task}))
    (tmp_path / "x_solutions.json").write_text('{"a": [[[1]]]}')

    (bad,) = read_records(str(path), dataset_format="kaggle")
    assert bad.reason == reason


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not JSON: .*; mend the solutions file"), ("[]", "is a list, not an object"), ("", "is empty")],
)
def test_a_solutions_file_that_is_none_ends_the_reading(tmp_path, text, complaint):
    (tmp_path / "x_challenges.json").write_text(json.dumps({"a": {"train": _TRAIN, "test": [{"input": [[3]]}]}}))
    (tmp_path / "x_solutions.json").write_text(text)

    with pytest.raises(DatasetError, match=f"x_solutions.json: {complaint}"):
        list(read_records(str(tmp_path / "x_challenges.json")))
