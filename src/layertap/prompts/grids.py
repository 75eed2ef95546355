"""Grid encoders: small immutable objects that write a grid as text. They nest, and have
expressions.

    GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))     ```grid shape: 2x2
                                                                 1 01
                                                                 2 23
                                                                 ```

There are four kinds, and each may hold only a kind below it: a code block (`GridCodeBlockEncoder`,
`GridShapeEncoder`) holds row numbers (`RowNumberEncoder`), these hold symbols
(`ReplaceNumberEncoder`), these hold cells (`MinimalGridEncoder`, `GridWithSeparationEncoder`,
`RepeatNumberEncoder`). Kinds may be left out, except the cells. Any other nesting is refused when
it is built: it would number fences, or replace the digits of a row number. So different grids have
different texts in every nesting that can be built.

`parse_grid_encoder` reads an expression without evaluating it. The grammar is Python's, so quoting
and keywords work as users expect, but only four kinds of node are walked: a call of a named
encoder, a keyword, a text and a whole number. An expression comes from a command line or a stored
run, and `eval` would let either run anything.
"""

import ast
import difflib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from layertap.core.records import Grid
from layertap.errors import PromptError
from layertap.prompts.labels import cell_marks
from layertap.prompts.marked import Marked, concat, marks_of, plain

_DIGITS = "0123456789"
# Phonetic letters, U+0250 to U+0259. They are rare, Unicode normalisation does not change them, and
# in the Qwen vocabulary each is one token that never merges with its neighbours. Most symbols merge
# with a space before them, and would change after a row number.
_SYMBOLS = "ɐɑɒɓɔɕɖɗɘə"
_TO_SYMBOLS = str.maketrans(_DIGITS, _SYMBOLS)
_FENCE = "```"


@dataclass(frozen=True)
class GridEncoder(ABC):
    """A way to write grids as text. `str()` gives the expression that `parse_grid_encoder`
    reads.
    """

    rank: ClassVar[int] = 0
    """An encoder may hold only encoders of a lower rank."""

    @abstractmethod
    def encode(self, grid: Grid) -> Marked:
        """Return the text of `grid` without a final line break, with its cells marked
        (labels.py).
        """

    def __str__(self) -> str:
        """Return the canonical expression, such as
        `GridCodeBlockEncoder(RepeatNumberEncoder(3))`.
        """
        values = [getattr(self, field.name) for field in fields(self)]
        arguments = [str(value) if isinstance(value, GridEncoder) else repr(value) for value in values]
        return f"{type(self).__name__}({', '.join(arguments)})"


@dataclass(frozen=True)
class MinimalGridEncoder(GridEncoder):
    """Digits without separators, one line per row."""

    def encode(self, grid: Grid) -> Marked:
        text = "\n".join(["".join([_DIGITS[cell] for cell in row]) for row in grid])
        return Marked(text, cell_marks(grid))


@dataclass(frozen=True)
class GridWithSeparationEncoder(GridEncoder):
    """Digits with `separator` between them, one line per row."""

    separator: str

    def __post_init__(self) -> None:
        """Refuse separators that could be mistaken for a cell or the end of a row."""
        if not self.separator:
            raise PromptError(f"{self}: the separator is empty; for cells without one use MinimalGridEncoder()")
        if any(character.isnumeric() for character in self.separator):
            raise PromptError(f"{self}: a separator with a digit cannot be distinguished from the cells")
        # Line breaks, control characters and halves of surrogate pairs are not printable.
        if not self.separator.replace("\t", " ").isprintable():
            raise PromptError(f"{self}: a separator must be printable characters or tabs; line breaks end the rows")

    def encode(self, grid: Grid) -> Marked:
        text = "\n".join([self.separator.join([_DIGITS[cell] for cell in row]) for row in grid])
        return Marked(text, cell_marks(grid, between=len(self.separator)))


@dataclass(frozen=True)
class RepeatNumberEncoder(GridEncoder):
    """Every digit repeated `n` times, one line per row, for vocabularies that merge digits."""

    n: int = 3

    def __post_init__(self) -> None:
        """Refuse numbers below 2."""
        if self.n < 2:
            raise PromptError(f"{self}: n must be 2 or more; to write each digit once, use MinimalGridEncoder()")

    def encode(self, grid: Grid) -> Marked:
        text = "\n".join(["".join([_DIGITS[cell] * self.n for cell in row]) for row in grid])
        return Marked(text, cell_marks(grid, characters=self.n))


@dataclass(frozen=True)
class _Wrapper(GridEncoder):
    """An encoder that adds something to the text of another."""

    inner: GridEncoder
    otherwise: ClassVar[str]
    """What would go wrong if this encoder held one of its own rank or higher."""

    def __post_init__(self) -> None:
        """Refuse encoders of the same or a higher rank."""
        if self.inner.rank >= self.rank:
            raise PromptError(
                f"{self}: {type(self.inner).__name__} cannot be inside {type(self).__name__}, because"
                f" {self.otherwise}. From the outside in, the order is: GridCodeBlockEncoder or GridShapeEncoder,"
                " RowNumberEncoder, ReplaceNumberEncoder, then the cells"
            )


@dataclass(frozen=True)
class ReplaceNumberEncoder(_Wrapper):
    """Cells as ten rare symbols instead of digits: colour 0 is ɐ, colour 9 is ə."""

    rank: ClassVar[int] = 1
    otherwise: ClassVar[str] = "it would replace digits that are not cells"

    def __post_init__(self) -> None:
        """Refuse separators that contain a replacing symbol."""
        super().__post_init__()
        if isinstance(self.inner, GridWithSeparationEncoder) and not set(_SYMBOLS).isdisjoint(self.inner.separator):
            raise PromptError(f"{self}: the separator contains one of {_SYMBOLS}, which stand for cells here")

    def encode(self, grid: Grid) -> Marked:
        text = self.inner.encode(grid)
        return Marked(text.translate(_TO_SYMBOLS), marks_of(text))


@dataclass(frozen=True)
class RowNumberEncoder(_Wrapper):
    """Every row with its number, counted from 1, and a space in front."""

    rank: ClassVar[int] = 2
    otherwise: ClassVar[str] = "it would number lines that are not plain rows of cells"

    def encode(self, grid: Grid) -> Marked:
        inner = self.inner.encode(grid)
        rows = plain(inner).split("\n")
        numbers = [f"{number} " for number in range(1, len(rows) + 1)]
        text = "\n".join([number + row for number, row in zip(numbers, rows, strict=True)])
        begins = np.cumsum([0, *(len(row) + 1 for row in rows[:-1])])
        return Marked(text, np.insert(marks_of(inner), np.repeat(begins, list(map(len, numbers))), 0))


@dataclass(frozen=True)
class GridCodeBlockEncoder(_Wrapper):
    """The grid in a fenced code block with the language `grid`."""

    rank: ClassVar[int] = 3
    otherwise: ClassVar[str] = "fences inside fences would end the block too early"

    def encode(self, grid: Grid) -> Marked:
        return concat((f"{self._opening(grid)}\n", self.inner.encode(grid), f"\n{_FENCE}"))

    def _opening(self, grid: Grid) -> str:
        return f"{_FENCE}grid"


@dataclass(frozen=True)
class GridShapeEncoder(GridCodeBlockEncoder):
    """The grid in a fenced code block that opens with its shape, rows x columns."""

    def _opening(self, grid: Grid) -> str:
        return f"{_FENCE}grid shape: {len(grid)}x{len(grid[0])}"


_ENCODERS: dict[str, type[GridEncoder]] = {
    encoder.__name__: encoder
    for encoder in (
        GridCodeBlockEncoder,
        GridShapeEncoder,
        GridWithSeparationEncoder,
        MinimalGridEncoder,
        RepeatNumberEncoder,
        ReplaceNumberEncoder,
        RowNumberEncoder,
    )
}


def parse_grid_encoder(expression: str) -> GridEncoder:
    """Parse the expression of an encoder; `parse_grid_encoder(str(encoder)) == encoder`.

    Raises PromptError if it is not such an expression, names an unknown encoder, or nests encoders
    that cannot be nested.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last: deep nests
        raise PromptError(f"grid encoder {expression!r} cannot be read: {error}") from error
    encoder = _value(tree.body)
    if not isinstance(encoder, GridEncoder):
        raise PromptError(f"grid encoder {expression!r} is not an encoder; the simplest one is MinimalGridEncoder()")
    return encoder


def _value(node: ast.expr) -> GridEncoder | str | int:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node)
        case ast.Constant(value=str() | int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            raise PromptError(f"grid encoder: {_encoder_class(name).__name__} needs parentheses after it")
        case _:
            raise PromptError(
                f"grid encoder, column {node.col_offset + 1}: only an encoder, a text or a whole number is allowed here"
            )


def _call(name: str, node: ast.Call) -> GridEncoder:
    encoder_class = _encoder_class(name)
    keywords = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if len(keywords) < len(node.keywords):
        raise PromptError(f"grid encoder, column {node.col_offset + 1}: {name} cannot be given `**` arguments")
    signature = inspect.signature(encoder_class)
    try:
        bound = signature.bind(*map(_value, node.args), **keywords)
    except TypeError as error:
        raise PromptError(f"grid encoder: {name}: {error}") from error
    for argument, value in bound.arguments.items():
        if not isinstance(value, wanted := signature.parameters[argument].annotation):
            raise PromptError(f"grid encoder: {argument} of {name} must be of type {wanted.__name__}, not {value!r}")
    return encoder_class(*bound.args, **bound.kwargs)


def _encoder_class(name: str) -> type[GridEncoder]:
    if name in _ENCODERS:
        return _ENCODERS[name]
    close = difflib.get_close_matches(name, _ENCODERS, n=1)
    suggestion = f"did you mean {close[0]}?" if close else f"there are {', '.join(_ENCODERS)}"
    raise PromptError(f"grid encoder: {name!r} is unknown; {suggestion}")
