"""Marked text behaves like text, and keeps its marks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.prompts.marked import Marked, concat, join, marks_of
from layertap.prompts.sandbox import chat_environment, compile_template

# Letters of its own for each place make what is left of a text say where it came from.
_TEXT = "  Ab c\nDef  ghij  \n klm no "


def numbered(text: str) -> Marked:
    """Each character marked with its place, from 1."""
    return Marked(text, np.arange(1, len(text) + 1))


def require_same(found: str, expected: str) -> None:
    """The text is as expected, and each character that is marked is the one at that place."""
    assert str.__str__(found) == expected
    assert all(
        _TEXT[mark - 1].lower() == char.lower() for char, mark in zip(found, marks_of(found), strict=True) if mark
    )
    assert len(marks_of(found)) == len(expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.strip(),
        lambda text: text.lstrip(),
        lambda text: text.rstrip(" "),
        lambda text: text[3:9],
        lambda text: text[::-1],
        lambda text: text[-4],
        lambda text: text.upper(),
        lambda text: text.title(),
        lambda text: text.removeprefix("  A"),
        lambda text: text.removesuffix("no "),
        lambda text: text.partition("Def")[2],
        lambda text: text.rpartition(" ")[0],
        lambda text: text.split()[-1],
        lambda text: text.split("  ")[1],
        lambda text: text.split(None, 2)[2],
        lambda text: text.rsplit(" ", 2)[-2],
        lambda text: text.splitlines()[1],
        lambda text: "".join(text.splitlines(True)),
        lambda text: " ".join(text.split()),
    ],
)
def test_what_changes_a_text_takes_the_marks_along(change):
    found = change(numbered(_TEXT))
    require_same(found, change(_TEXT))


@given(st.text("ab \n", max_size=12), st.sampled_from([None, "a", "ab", " ", "\n"]), st.integers(-1, 3))
def test_the_parts_of_any_text_are_marked_with_their_places(text, sep, most):
    for split in (str.split, str.rsplit):
        plain, marked = split(text, sep, most), getattr(numbered(text), split.__name__)(sep, most)
        assert marked == plain
        for part in marked:
            first = int(marks_of(part)[0]) - 1 if part else 0
            assert text[first : first + len(part)] == part
            assert marks_of(part).tolist() == list(range(first + 1, first + 1 + len(part)))


@given(st.text("abc", max_size=12), st.sampled_from(["a", "ab", "cc"]), st.sampled_from(["", "x", "yz", "abc"]))
def test_what_replaces_a_text_takes_its_marks(text, old, new):
    found = numbered(text).replace(old, new)
    assert found == text.replace(old, new)
    kept = [mark for char, mark in zip(found, marks_of(found), strict=True) if char not in "xyz"]
    assert kept == sorted(kept)
    if new:
        assert 0 not in marks_of(found)


def test_texts_that_are_put_together_keep_what_each_has():
    a, b = Marked("ab", 1), Marked("c", 2)
    for found in (a + "-" + b, "" + a + "-" + b, concat((a, "-", b)), join("-", [a, b]), Marked("-").join([a, b])):
        assert (found, marks_of(found).tolist()) == ("ab-c", [1, 1, 0, 2])
    assert marks_of("x" + b * 2).tolist() == [0, 2, 2]
    assert marks_of("<%s>" % b).tolist() == [0, 2, 0]  # noqa: UP031 - templates write this
    assert a == "ab"
    assert {a: 1}["ab"] == 1
    assert marks_of("plain").tolist() == [0] * 5


@pytest.mark.parametrize(
    ("source", "text", "marks"),
    [
        ("<{{ a }}>", "<ab>", [0, 1, 1, 0]),
        ("{{ '<' + a + '>' }}", "<ab>", [0, 1, 1, 0]),
        ("{{ '<' ~ a ~ 3 }}", "<ab3", [0, 1, 1, 0]),
        ("{% set x %}.{{ a }}{% endset %}{{ x }}", ".ab", [0, 1, 1]),
        ("{% macro m(t) %}.{{ t }}{% endmacro %}{{ m(a) }}", ".ab", [0, 1, 1]),
        ("{{ [a, b] | join(', ') }}", "ab, c", [1, 1, 0, 0, 2]),
        ("{{ [{'t': a}, {'t': b}] | join('', 't') }}", "abc", [1, 1, 2]),
        ("{% for t in [a, b] %}{{ t | upper }}{% endfor %}", "ABC", [1, 1, 2]),
        ("{{ (' ' + a + ' ') | trim }}", "ab", [1, 1]),
        ("{{ a | replace('a', 'x') }}", "xb", [1, 1]),
        ("{{ a[1:] }}{{ a | first }}", "ba", [1, 1]),
        ("{{ {'k': b} | tojson }}", '{"k": "c"}', [2] * 10),
        ("{{ a | default('none') }}{{ a if a else '' }}", "abab", [1] * 4),
        ("{% filter upper %}.{{ a }}{% endfilter %}", ".AB", [0, 1, 1]),
        ("{% set n = namespace(t=a) %}{{ n.t }}", "ab", [1, 1]),
        ("{{ a.split('b')[0] }}{{ '%s.' | format(b) }}", "ac.", None),
    ],
)
def test_templates_keep_marks(source, text, marks):
    found = compile_template(chat_environment(), source, "t").render(a=Marked("ab", 1), b=Marked("c", 2))
    assert found == text
    assert marks is None or marks_of(found).tolist() == marks
