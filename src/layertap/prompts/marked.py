"""Text that remembers the origin of its characters, through every template.

A `Marked` is a `str` in which each character has an integer, its mark (labels.py defines the bits;
0 means nothing). Grid encoders write marked text, and conversations mark what each role says. Then
Jinja2 templates, yours and the tokenizer's, may strip, split, cut, replace and join it. The result
still knows the cell and the role of each character. Searching the finished text for the inserted
parts would not work: the same words may occur twice, and a template may have changed them.

These operations of templates keep marks: `+`, `~`, output, `set` blocks, macros, slices, strip,
split, replace, join, changes of case that keep the length, `indent`, `format` with `%s`, and
`tojson`. Every other operation gives plain text, whose marks are 0. A template that loses marks
like this is refused. A probe, a marked character at the end of each line, detects it.

A mark costs 8 bytes per character while a prompt is made. Marks are not stored.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

Marks = Int64[np.ndarray, " characters"]


class Marked(str):
    """A text with a mark for each character. It is equal to the plain text and has its hash."""

    _marks: Marks

    def __new__(cls, text: object = "", marks: Marks | int = 0) -> "Marked":
        made = super().__new__(cls, text)
        made._marks = np.full(len(made), marks, np.int64) if isinstance(marks, int) else marks
        return made

    def with_bits(self, bits: int) -> "Marked":
        """Return the same text with these bits set in every mark."""
        return Marked(str.__str__(self), self._marks | bits)

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> "Marked":
        return concat((self, other))

    def __radd__(self, other: str) -> "Marked":
        return concat((other, self))

    def __mul__(self, times: SupportsIndex) -> "Marked":
        return concat([self] * times.__index__())

    __rmul__ = __mul__

    def __rmod__(self, pattern: str) -> str:
        head, _, tail = pattern.partition("%s")
        return concat((head, self, tail)) if "%" not in head + tail else pattern % str.__str__(self)

    def __getitem__(self, key: SupportsIndex | slice) -> "Marked":
        marks = self._marks[key if isinstance(key, slice) else key.__index__()]
        return Marked(super().__getitem__(key), np.atleast_1d(marks))

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def strip(self, chars: str | None = None, /) -> "Marked":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Marked":
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Marked":
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> "Marked":
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> "Marked":
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._places(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._places(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        ends = accumulate(map(len, super().splitlines(True)), initial=0)
        return [self[at : at + len(line)] for at, line in zip(ends, super().splitlines(keepends), strict=False)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, _ = map(len, super().partition(sep))
        return self[:head], self[head : head + middle], self[head + middle :]

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, _ = map(len, super().rpartition(sep))
        return self[:head], self[head : head + middle], self[head + middle :]

    def join(self, parts: Iterable[str], /) -> "Marked":
        return join(self, parts)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Insert `new` with the marks of the text that it replaces, or with its own if it is
        marked.

        If the lengths differ, all of `new` gets the first of these marks.
        """
        if not old:
            return super().replace(old, new, count)
        first, *others = self.split(old, count)
        pieces, at = [first], len(first)
        for piece in others:
            gone = self._marks[at : at + len(old)]
            own = new if isinstance(new, Marked) else Marked(new, gone if len(new) == len(old) else int(gone[0]))
            pieces += [own, piece]
            at += len(old) + len(piece)
        return concat(pieces)

    def lower(self) -> str:
        return self._same_length(super().lower())

    def upper(self) -> str:
        return self._same_length(super().upper())

    def capitalize(self) -> str:
        return self._same_length(super().capitalize())

    def title(self) -> str:
        return self._same_length(super().title())

    def swapcase(self) -> str:
        return self._same_length(super().swapcase())

    def translate(self, table: Any, /) -> str:  # noqa: ANN401 - as `str` has it
        return self._same_length(super().translate(table))

    def _same_length(self, text: str) -> str:
        return Marked(text, self._marks) if len(text) == len(self) else text

    def _places(self, parts: list[str], sep: str | None) -> list[str]:
        """Return the same parts with their marks; `sep` or white space is between two of them."""
        at = 0
        found: list[str] = []
        for part in parts:
            at = at if sep is not None else self.index(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found


_PROBE = "\uf8f6"  # from the private use area, which no text uses


def with_probes(text: str) -> Marked:
    """Add a character to the end of each line that is not blank, with the mark of the line."""
    lines = [line + _PROBE if line.strip() else line for line in text.split("\n")]
    return join("\n", [Marked(plain(line), int(marks_of(line).max(initial=0))) for line in lines])


def loses_marks(text: str) -> bool:
    """Return whether the output of a template has a probe without a mark."""
    marks = marks_of(text)
    return any(character == _PROBE and not marks[place] for place, character in enumerate(plain(text)))


def marks_of(text: str) -> Marks:
    """Return the mark of each character; 0 if the text is plain."""
    return text._marks if isinstance(text, Marked) else np.zeros(len(text), np.int64)


def plain(text: str) -> str:
    """Return the text without its marks; only such text may be stored."""
    return str.__str__(text)


def concat(parts: Iterable[str]) -> Marked:
    """Concatenate all parts."""
    held = list(parts)
    marks = [marks_of(part) for part in held]
    return Marked("".join(held), np.concatenate(marks) if marks else 0)


def join(separator: str, parts: Iterable[str]) -> Marked:
    """Join all parts with the separator."""
    held: list[str] = []
    for part in parts:
        held += [separator, part] if held else [part]
    return concat(held)
