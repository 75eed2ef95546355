"""Samples that a model has just read, with the interface of a dataset's samples.

Activations keep the dtype of the device, bfloat16 in a bfloat16 model, and are widened on each
access. Widening changes no value, and this needs half the memory. float16 is refused if it would
turn a number into an infinity.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.core import sample as core
from layertap.core.columns import SINK_FACTOR, find_sinks, usual_norms
from layertap.core.taps import Site, Tap
from layertap.errors import UsageError
from layertap.reader.asking import find_tap
from layertap.reader.blocks import round_to
from layertap.reader.sample import Sample
from layertap.shards.shard import Words
from layertap.shards.statistics import measure


@dataclass(frozen=True, eq=False)
class Reading:
    """One request to a model: it resolves layers and sites, and decodes tokens."""

    taps: Mapping[Tap, int]
    """The requested taps, with widths."""
    decode: Callable[[Sequence[int]], str]
    dtype: np.dtype
    """The dtype of the activations that it returns."""

    def tap(self, layer: int, site: Site | None) -> Tap:
        """Return the tap of this layer and site; raises UsageError if it was not read."""
        return find_tap(self.taps, layer, site, "what the model read")

    def sample(self, read: core.Sample) -> Sample:
        """Return the sample in the form that a program uses."""
        return Sample(_Held(read, self.dtype), 0, "", self)


class _Held:
    """One sample in memory, as `reader.sample.Content`."""

    def __init__(self, sample: core.Sample, dtype: np.dtype) -> None:
        self._sample = sample
        self._dtype = dtype

    def offsets(self) -> np.ndarray:
        return np.array([0, self._sample.tokens], np.int64)

    def sample_idx(self) -> np.ndarray:
        return np.array([self._sample.sample_idx], np.int64)

    def words(self) -> list[Words]:
        return [Words(self._sample.task_id, self._sample.text_preview, self._sample.origin)]

    def column(self, name: str, begin: int, end: int) -> np.ndarray:
        if name not in self._sample.columns:
            raise UsageError(f"there is no column {name}; there are {', '.join(self._sample.columns)}")
        return self._sample.columns[name][begin:end]

    def positions(self, begin: int, end: int) -> np.ndarray:
        return self._sample.columns["positions"][begin:end]

    def activations(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        return round_to(self._sample.activations[tap][begin:end], self._dtype)

    def norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        return measure(self.activations(tap, begin, end), 0)[1].astype(np.float32)

    def sinks(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        norms = self.norms(tap, 0, self._sample.tokens)
        usual = usual_norms(norms, self.offsets())
        return find_sinks(norms, np.repeat(usual, len(norms)), SINK_FACTOR)[begin:end]
