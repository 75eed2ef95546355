"""Each way in which a task can be malformed has its own sentence, with the place inside the task."""

import pytest

from layertap.core.records import Pair, Task
from layertap.dataset.arc import task_from_pairs, task_from_problem, task_from_splits
from layertap.errors import BadTaskError

_PAIR = {"input": [[1]], "output": [[2]]}


def _reason(check, raw) -> str:
    with pytest.raises(BadTaskError) as caught:
        check(raw, "a")
    return str(caught.value)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (5, " is a number, not a grid (a list of rows)"),
        ([], ": the grid is empty"),
        ([[]], ": the grid is empty"),
        ([[1], "1"], ": row 2 is a text, not a list"),
        ([[1, 2], [3, 4], [5]], ": row 3 has 1 cells, row 1 has 2"),
        ([[0], []], ": row 2 has 0 cells, row 1 has 1"),
        ([[0]] * 31, ": 31 rows of 1 cells; a grid has at most 30 a side"),
        ([[0] * 31], ": 1 rows of 31 cells; a grid has at most 30 a side"),
        ([[0, 10]], ": row 1, cell 2 is 10, not a colour (a whole number 0 to 9)"),
        ([[-1]], ": row 1, cell 1 is -1, not a colour (a whole number 0 to 9)"),
        ([[0], [True]], ": row 2, cell 1 is True, not a colour (a whole number 0 to 9)"),
        ([[1.0]], ": row 1, cell 1 is 1.0, not a colour (a whole number 0 to 9)"),
        ([["1"]], ": row 1, cell 1 is '1', not a colour (a whole number 0 to 9)"),
        ([[None]], ": row 1, cell 1 is None, not a colour (a whole number 0 to 9)"),
        ([[[1]]], ": row 1, cell 1 is [1], not a colour (a whole number 0 to 9)"),
    ],
)
def test_an_unsound_grid_is_named_with_its_place(grid, reason):
    raw = {"train": [_PAIR, {"input": [[1]], "output": grid}], "test": [_PAIR]}

    assert _reason(task_from_splits, raw) == f"train pair 2 output{reason}"


def test_the_largest_grid_is_a_grid():
    largest = [[9] * 30] * 30

    task = task_from_splits({"train": [{"input": largest, "output": largest}], "test": [_PAIR]}, "a")
    assert task.train[0].input == ((9,) * 30,) * 30


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "is a list, not an object with 'train' and 'test'"),
        ({"test": [_PAIR]}, "lacks 'train'"),
        ({"train": [_PAIR]}, "lacks 'test'"),
        ({"train": [], "test": [_PAIR]}, "'train' is empty"),
        ({"train": [_PAIR], "test": []}, "'test' is empty"),
        ({"train": {}, "test": [_PAIR]}, "'train' is an object, not a list of pairs"),
        ({"train": [5], "test": [_PAIR]}, "train pair 1 is a number, not an object with 'input' and 'output'"),
        ({"train": [{"output": [[1]]}], "test": [_PAIR]}, "train pair 1 lacks 'input'"),
        ({"train": [{"input": [[1]]}], "test": [_PAIR]}, "train pair 1 has no output"),
        ({"train": [{"input": [[1]], "output": None}], "test": [_PAIR]}, "train pair 1 has no output"),
        ({"train": [_PAIR], "test": [_PAIR, {"output": [[1]]}]}, "test pair 2 lacks 'input'"),
        ({"train": [_PAIR], "test": [{"input": [[1]], "output": []}]}, "test pair 1 output: the grid is empty"),
    ],
)
def test_an_unsound_task_is_named_with_its_place(raw, reason):
    assert _reason(task_from_splits, raw) == reason


@pytest.mark.parametrize("test", [{"input": [[3]]}, {"input": [[3]], "output": None}])
def test_a_test_output_may_be_unknown(test):
    task = task_from_splits({"train": [_PAIR], "test": [test]}, "a")

    assert task == Task("a", (Pair(((1,),), ((2,),)),), (Pair(((3,),), None),))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "is a list, not a problem with 'examples'"),
        ({"source": ""}, "is an object without 'examples', not a problem with 'examples'"),
        ({"examples": "x"}, "'examples' is a text, not a list of [input, output]"),
        ({"examples": [[[[1]], [[2]]], [[[1]]]]}, "example 2 is not a list of two, [input, output]"),
        ({"examples": [[[[1]], [[2]]]]}, "has 1 examples; at least two are needed, as the last one is the test"),
        ({"examples": [[[[1]], [[2]]], [[[1]], None]]}, "example 2 has no output"),
    ],
)
def test_an_unsound_problem_is_named_with_its_place(raw, reason):
    assert _reason(task_from_problem, raw) == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "is an object, not a list of pairs"),
        ([_PAIR], "has 1 pairs; at least two are needed, as the last one is the test"),
        ([_PAIR, 5], "pair 2 is a number, not an object with 'input' and 'output'"),
    ],
)
def test_unsound_pairs_are_named_with_their_place(raw, reason):
    assert _reason(task_from_pairs, raw) == reason
