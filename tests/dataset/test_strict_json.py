"""Every way in which bytes are not one JSON value becomes one sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.dataset.strict_json import may_go_on, parse
from layertap.errors import BadTaskError


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": }', "is not JSON: Expecting value at column 7"),
        (b'{\n"a": }', "is not JSON: Expecting value at line 2 column 6"),
        (b'{"a": 1}{"b": 2}', "is not JSON: Extra data at column 9"),
        (b'"\xff"', "is not UTF-8 text: invalid start byte at byte 2"),
        (b'{"b": {"a": 1, "a": 1}}', "has the key 'a' twice in one object"),
        (b"[" * 100_000, "is not a task: its lists are nested too deeply"),
    ],
)
def test_the_reason_says_what_and_where(data, reason):
    with pytest.raises(BadTaskError) as caught:
        parse(data)
    assert str(caught.value) == reason


def test_an_overlong_number_is_refused():
    with pytest.raises(BadTaskError, match="holds a number that cannot be read"):
        parse(b"9" * 5000)


def test_a_byte_order_mark_is_no_part_of_the_value():
    assert parse(b"\xef\xbb\xbf[1]") == [1]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES, st.data())
def test_a_pretty_printed_value_may_go_on_after_each_of_its_lines(value, data):
    lines = json.dumps([value], indent=1).encode().splitlines(keepends=True)
    taken = data.draw(st.integers(1, len(lines)))

    assert may_go_on(b"".join(lines[:taken]))


@pytest.mark.parametrize("data", [b'{"a": 1}\n{"b": 2}\n', b'{"a": [1\n{"b": 2}\n', b"prose", b"\xff", b'{"a": "cut\n'])
def test_what_is_no_value_so_far_may_not_go_on(data):
    assert not may_go_on(data)
