"""One value a line or one value a file, told from the beginning of the file alone."""

import json
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.dataset.content import Lines, Refused, Whole, content_of

_ROW = b'{"train": [], "test": []}\n'


def _content(data: bytes, *, named_jsonl: bool = False):
    return content_of(iter(data.splitlines(keepends=True)), named_jsonl=named_jsonl)


_VALUES = st.recursive(
    st.integers() | st.text() | st.none(),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.text(), inner, min_size=1),
    max_leaves=10,
)


@given(_VALUES, st.sampled_from([None, 0, 2]), st.booleans())
def test_one_value_is_recognised_however_it_is_printed(inner, indent, named_jsonl):
    value = {"outer": [inner]}

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
    content = _content(b"[\n{],\n" + _ROW + b"]\n", named_jsonl=True)

    assert content == Refused(
        "is not JSON: Expecting property name enclosed in double quotes at line 2 column 2",
    )


@pytest.mark.parametrize(("named_jsonl", "kind"), [(True, Lines), (False, Whole)])
def test_only_the_name_settles_a_lone_row(named_jsonl, kind):
    assert isinstance(_content(_ROW, named_jsonl=named_jsonl), kind)


@pytest.mark.parametrize(("named_jsonl", "kind"), [(True, Lines), (False, Refused)])
def test_only_the_name_settles_a_lone_broken_line(named_jsonl, kind):
    assert isinstance(_content(b'{"train": [', named_jsonl=named_jsonl), kind)
