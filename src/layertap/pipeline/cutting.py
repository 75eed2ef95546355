"""Cutting a step into samples: each gets its own copy of its tokens, behind those of its prefix.

Copied, because a view would keep the whole step in memory while one of its samples waits to be
written. A sample's activations at all taps of one width are one array, and each tap has a part of
it. An array of 4 MiB or more gets pages of 2 MiB where Linux has them (numpy asks for those), so
the system makes some ten pages for a sample of many layers instead of ten thousand (docs/LOG.md).

An accelerator gives steps faster than one thread copies them, so there some threads copy samples
side by side. On a CPU the forward pass needs the cores, and the caller's thread copies.

With activations that stay on the device nothing is copied (staying.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from jaxtyping import Float

from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.packing import Placement
from layertap.pipeline.session import OpenedModel
from layertap.pipeline.staying import DeviceTokens, joined
from layertap.pipeline.step import Beginning, HostOutputs
from layertap.shards.threads import usable_cores, working

_COPIERS = 4

Rows = Float[np.ndarray, "_ _"]
"""[tokens, width of the tap]"""
Placed = tuple[Sample, Placement]
"""A whole sample, and where a step has its tokens."""
Cut = Callable[[Sequence[Placed], HostOutputs, Beginning | None], Iterator[Sample]]
"""Cuts samples out of the outputs of a step, in this order, with the prefix before each."""


def copiers(model: OpenedModel) -> int:
    """How many threads copy samples."""
    return 1 if model.stays or model.platform == "cpu" else min(_COPIERS, usable_cores())


@contextmanager
def cutter(count: int, kept: KeptTokens) -> Iterator[Cut]:
    """What cuts steps into samples with the `kept` tokens, in so many threads, in the block."""
    with nullcontext() if count == 1 else working(count) as threads:

        def cut(placed: Sequence[Placed], arrays: HostOutputs, beginning: Beginning | None) -> Iterator[Sample]:
            def one(own: Placed) -> Sample:
                return _cut_out(*own, arrays, beginning, kept)

            return map(one, placed) if threads is None else threads.map(one, placed)

        yield cut


def _cut_out(
    sample: Sample, place: Placement, arrays: HostOutputs, beginning: Beginning | None, kept: KeptTokens
) -> Sample:
    """The kept part of the sample: its prefix, then its part of the step's outputs."""
    chosen = kept.rows(sample)
    span = slice(place.start, place.start + place.length)
    parts = {tap: [rows[place.row][span]] for tap, rows in arrays.items()}
    if beginning is not None:
        parts = {tap: [beginning.activations[tap], *own] for tap, own in parts.items()}
    if chosen is not None:
        sample, parts = sample.only(chosen), {tap: _chosen(own, chosen) for tap, own in parts.items()}
    return sample.with_activations(_together(parts))


def _chosen(parts: Sequence[Any], chosen: np.ndarray) -> list[Any]:
    """These tokens of a sample, part by part."""
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [part[rows] for part, rows in zip(parts, np.split(chosen, ends), strict=True)]


def _together(parts: Mapping[Tap, Sequence[Any]]) -> dict[Tap, Any]:
    """The parts of a sample at each tap as one."""
    if isinstance(next(iter(parts.values()))[0], DeviceTokens):
        return {tap: joined(*own) for tap, own in parts.items()}
    return gather(parts)


def gather(parts: Mapping[Tap, Sequence[Rows]]) -> dict[Tap, Rows]:
    """Copy the parts of a sample at each tap, as many tokens at each, into new memory."""
    first = next(iter(parts.values()))
    tokens = sum(map(len, first))
    memory: dict[int, Iterator[np.ndarray]] = {}
    widths = [own[0].shape[1] for own in parts.values()]
    for width in set(widths):
        memory[width] = iter(np.empty((widths.count(width), tokens, width), first[0].dtype))
    return {tap: np.concatenate(own, out=next(memory[own[0].shape[1]])) for tap, own in parts.items()}
