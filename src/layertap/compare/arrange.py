"""Which axis of an array is what: samples, tokens, layers, channels.

The token ids say how many samples and tokens there are, the model how wide its sites are. The axes
of an array are matched with these sizes, in the orders in which tools write them. An array may have
a few rows more or less than there are token ids: a first token that is missing is one of the faults
that are looked for. Heads may be an axis of their own. Channels may have come before tokens, which
is a fault, and said to be one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import NamedTuple

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 from here on
import numpy as np

from layertap.compare.candidates import ModelFacts
from layertap.compare.claims import claim_of, claim_of_slice
from layertap.compare.dump import DumpArray, Prompt

_MISCOUNTED = 4
"""How many rows an array may have more or less than there are tokens."""
_ROLES = (("tokens",), ("samples", "tokens"), ("tokens", "layers"), ("samples", "tokens", "layers"))


@dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file; nothing is read until it is asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    """The part that these slices cut out."""


class Span(NamedTuple):
    """Where the tokens of a sample are in the table of ids."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class IdTable:
    """Token ids as they are stored, and which of them are samples."""

    rows: int
    columns: int
    """Of a table; ids in one row are one row."""
    samples: int
    """How many there are, as far as they were looked for."""
    spans: Sequence[Span]
    """Those that are compared."""
    prompts: Sequence[Prompt]
    total: int
    """Tokens of all samples of the file, without padding."""


@dataclass(frozen=True)
class Layout:
    """The axes of an array by what they are; None where it has no such axis."""

    tokens: int
    width: int
    samples: int | None = None
    layers: int | None = None
    heads: int | None = None
    """Heads before the size of one: both together are the width."""
    transposed: bool = False
    """Whether channels come before tokens."""


def arrays_of(stored: Stored, ids: IdTable, facts: ModelFacts) -> list[DumpArray]:
    """The arrays in a stored one: one for each of its layers; none where its shape fits no
    reading.
    """
    layout = next(_layouts(stored.shape, ids, facts), None)
    if layout is None:
        return []
    layers = 1 if layout.layers is None else stored.shape[layout.layers]
    width = stored.shape[layout.width] * (1 if layout.heads is None else stored.shape[layout.heads])
    remark = "stored with channels before tokens" if layout.transposed else ""
    found = []
    for layer in range(layers):
        alone = layout.layers is None
        name = stored.name if alone else f"{stored.name}[{', '.join(_place(layout, layer))}]"
        claim = claim_of(stored.name, facts) if alone else claim_of_slice(stored.name, layer, layers, facts)
        found.append(DumpArray(name, stored.dtype, width, claim, _reader(stored, ids, layout, layer), remark))
    return found


def _place(layout: Layout, layer: int) -> list[str]:
    assert layout.layers is not None
    return [":"] * layout.layers + [str(layer)]


def _layouts(shape: tuple[int, ...], ids: IdTable, facts: ModelFacts) -> Iterator[Layout]:
    """Every reading of the axes, the likeliest first."""
    widths, last = {*facts.widths.values(), facts.vocab_size}, len(shape) - 1
    if last >= 1 and shape[last] in widths:
        yield from _matched(shape, ids, tuple(range(last)), width=last)
    if last >= 2 and shape[last - 1] * shape[last] in widths:
        yield from _matched(shape, ids, tuple(range(last - 1)), width=last, heads=last - 1)
    if last >= 1 and shape[last - 1] in widths:
        for layout in _matched(shape, ids, (*range(last - 1), last), width=last - 1):
            yield replace(layout, transposed=True)
    if last >= 1:
        yield from _matched(shape, ids, tuple(range(last)), width=last)


def _matched(
    shape: tuple[int, ...], ids: IdTable, axes: tuple[int, ...], width: int, heads: int | None = None
) -> Iterator[Layout]:
    """The other axes, by every order of what they can be; exact sizes come first."""
    for slack in (0, _MISCOUNTED):
        for roles in _ROLES:
            for order in permutations(roles) if len(roles) == len(axes) else ():
                places = dict(zip(order, axes, strict=True))
                if _fits(shape, ids, places, slack):
                    tokens, samples, layers = (places.get(role) for role in ("tokens", "samples", "layers"))
                    assert tokens is not None
                    yield Layout(tokens, width, samples, layers, heads)


def _fits(shape: tuple[int, ...], ids: IdTable, places: Mapping[str, int], slack: int) -> bool:
    tokens = shape[places["tokens"]]
    one_row = ids.rows == 1 and abs(tokens - ids.columns) <= (slack if ids.samples == 1 else 0)
    if "samples" in places:
        table = shape[places["samples"]] == ids.rows and abs(tokens - ids.columns) <= slack
        return table and (ids.rows > 1 or one_row)
    return one_row or tokens in (ids.rows * ids.columns, ids.total)


def _reader(stored: Stored, ids: IdTable, layout: Layout, layer: int) -> Callable[[int], list[np.ndarray]]:
    """Reads the rows of each sample, so many at most where it has more tokens."""

    def read(tokens: int) -> list[np.ndarray]:
        places = _rows_of(stored.shape, ids, layout)
        return [
            _cut(stored, layout, layer, row, start, min(stop, start + tokens) if len(prompt) > tokens else stop)
            for (row, start, stop), prompt in zip(places, ids.prompts, strict=True)
        ]

    return read


def _rows_of(shape: tuple[int, ...], ids: IdTable, layout: Layout) -> list[Span]:
    """Where each sample's rows are on the axes of samples and tokens."""
    tokens = shape[layout.tokens]
    if layout.samples is not None or (ids.rows == 1 and tokens != ids.total):
        more = tokens - ids.columns
        return [Span(row, start, stop + more if stop == ids.columns else stop) for row, start, stop in ids.spans]
    if tokens == ids.rows * ids.columns:
        return [
            Span(0, row * tokens // ids.rows + start, row * tokens // ids.rows + stop) for row, start, stop in ids.spans
        ]
    ends = np.cumsum([0, *(span.stop - span.start for span in ids.spans)]).tolist()
    return [Span(0, begin, end) for begin, end in pairwise(ends)]


def _cut(stored: Stored, layout: Layout, layer: int, row: int, start: int, stop: int) -> np.ndarray:
    index = [slice(None)] * len(stored.shape)
    index[layout.tokens] = slice(start, stop)
    if layout.samples is not None:
        index[layout.samples] = slice(row, row + 1)
    if layout.layers is not None:
        index[layout.layers] = slice(layer, layer + 1)
    part = stored.read(tuple(index))
    ends = [layout.width] if layout.heads is None else [layout.heads, layout.width]
    others = [axis for axis in range(part.ndim) if axis not in (layout.tokens, *ends)]
    moved = part.transpose(*others, layout.tokens, *ends)
    return moved.reshape(moved.shape[len(others)], -1).astype(np.float32)
