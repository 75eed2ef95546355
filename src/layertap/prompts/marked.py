"""Text that remembers where its characters come from, through every template.

A `Marked` is a `str` in which each character carries a whole number, its mark (labels.py says what
the bits mean; 0 is nothing). Grid encoders write marked text, and conversations mark what each role
says. Jinja2 templates, the user's own and the tokenizer's, then do with it what they like: strip,
split, cut, replace, join. The result knows for each character which cell it is of and who says it.
Searching the finished text for what was put in could not tell that: the same words may be there
twice, and a template may have changed them.

The ways in which templates build text keep marks: `+`, `~`, output, `set` blocks, macros, slices,
strip, split, replace, join, case where no length changes, `indent`, `format` with `%s`, and
`tojson`. What is not listed here gives plain text, whose marks are 0. A template that loses marks
in such a way is refused: it shows in a probe, a marked character at the end of each line.

A mark costs 8 bytes a character while a prompt is made. Nothing of it is stored.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

Marks = Int64[np.ndarray, " characters"]


class Marked(str):
    """A text with a mark for each character. It equals, and hashes as, the plain text."""

    _marks: Marks

    def __new__(cls, text: object = "", marks: Marks | int = 0) -> "Marked":
        made = super().__new__(cls, text)
        made._marks = np.full(len(made), marks, np.int64) if isinstance(marks, int) else marks
        return made

    def with_bits(self, bits: int) -> "Marked":
        """The same text with these bits set in every mark."""
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
        """Put in `new`, with the marks of what it replaces, or its own where it is marked.

        Where lengths differ, all of it has the first of them.
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
        """The same parts with their marks; between two of them is `sep`, or white space."""
        at = 0
        found: list[str] = []
        for part in parts:
            at = at if sep is not None else self.index(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found


_PROBE = "\uf8f6"  # of the private use area: no text has it


def with_probes(text: str) -> Marked:
    """The text with a character at the end of each line that is not blank, marked as the line."""
    lines = [line + _PROBE if line.strip() else line for line in text.split("\n")]
    return join("\n", [Marked(plain(line), int(marks_of(line).max(initial=0))) for line in lines])


def loses_marks(text: str) -> bool:
    """Whether what a template wrote has a probe without a mark."""
    marks = marks_of(text)
    return any(character == _PROBE and not marks[place] for place, character in enumerate(plain(text)))


def marks_of(text: str) -> Marks:
    """The mark of each character; 0 where the text is plain."""
    return text._marks if isinstance(text, Marked) else np.zeros(len(text), np.int64)


def plain(text: str) -> str:
    """The text without its marks, as what is stored has to be."""
    return str.__str__(text)


def concat(parts: Iterable[str]) -> Marked:
    """All parts, one after the other."""
    held = list(parts)
    marks = [marks_of(part) for part in held]
    return Marked("".join(held), np.concatenate(marks) if marks else 0)


def join(separator: str, parts: Iterable[str]) -> Marked:
    """All parts, with the separator between them."""
    held: list[str] = []
    for part in parts:
        held += [separator, part] if held else [part]
    return concat(held)
