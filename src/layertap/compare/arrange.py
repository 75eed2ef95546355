"""Find the meaning of an array's axes: samples, tokens, layers, channels.

The token ids give the numbers of samples and tokens, the model the widths of its sites. We match
the axes of an array with these sizes, in the orders that tools write. An array may have a few rows
more or fewer than there are token ids, because a missing first token is one of the faults we look
for. Heads may have their own axis. If channels come before tokens, that is reported as a fault.
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
"""By how many rows an array may differ from the number of tokens."""
_ROLES = (("tokens",), ("samples", "tokens"), ("tokens", "layers"), ("samples", "tokens", "layers"))


@dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file; nothing is read until you call `read`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    """Reads the part that these slices select."""


class Span(NamedTuple):
    """The place of a sample's tokens in the table of ids."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class IdTable:
    """Stored token ids, and which of them are samples."""

    rows: int
    columns: int
    """Columns of the table; a flat list of ids has one row."""
    samples: int
    """How many samples were found."""
    spans: Sequence[Span]
    """The samples to compare."""
    prompts: Sequence[Prompt]
    total: int
    """How many tokens all samples of the file have, without padding."""


@dataclass(frozen=True)
class Layout:
    """The axes of an array by meaning; None if it has no such axis."""

    tokens: int
    width: int
    samples: int | None = None
    layers: int | None = None
    heads: int | None = None
    """The axis of heads, before the head size; both together are the width."""
    transposed: bool = False
    """Whether channels come before tokens."""


def arrays_of(stored: Stored, ids: IdTable, facts: ModelFacts) -> list[DumpArray]:
    """Split a stored array into one array per layer; none if its shape has no possible meaning."""
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
    """Yield every possible meaning of the axes, the likeliest first."""
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
    """Match the other axes in every order of possible meanings; exact sizes come first."""
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
    """Return a function that reads the rows of each sample, up to a number of tokens."""

    def read(tokens: int) -> list[np.ndarray]:
        places = _rows_of(stored.shape, ids, layout)
        return [
            _cut(stored, layout, layer, row, start, min(stop, start + tokens) if len(prompt) > tokens else stop)
            for (row, start, stop), prompt in zip(places, ids.prompts, strict=True)
        ]

    return read


def _rows_of(shape: tuple[int, ...], ids: IdTable, layout: Layout) -> list[Span]:
    """Return where each sample's rows are on the axes of samples and tokens."""
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
