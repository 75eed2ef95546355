"""One sample of a dataset, read as far as it is asked for."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from layertap.core.columns import NO_LABELS, SINK
from layertap.core.taps import Site, Tap
from layertap.reader.labels import Labels
from layertap.shards.shard import Shard, Words


class ActivationSample:
    """A prompt and its activations.

    What is not asked for is not read, and activations of local safetensors are views of the mapped
    file. A sample of a pickle holds on to its whole shard.
    """

    def __init__(self, content: Shard, number: int, source: str, resolve: Callable[[int, Site | None], Tap]) -> None:
        self.source = source
        """The folder that it is from, below the dataset's; samples of several streams may have one
        `sample_idx`."""
        self._content = content
        self._number = number
        self._resolve = resolve

    @cached_property
    def sample_idx(self) -> int:
        """Its number in the run that it is from."""
        return int(self._content.sample_idx()[self._number])

    @property
    def task_id(self) -> str:
        """The task, or the document, that the prompt was made of."""
        return self._words.task_id

    @property
    def text_preview(self) -> str:
        """The prompt's first 200 characters."""
        return self._words.text_preview

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the prompt was made of its task."""
        return self._words.origin

    @cached_property
    def token_ids(self) -> np.ndarray:
        """The prompt's tokens; int32 [tokens]."""
        return self.column("token_ids")

    @property
    def positions(self) -> np.ndarray:
        """The place of each token in the prompt: 0, 1, 2, ..., but for tokens that were not kept;
        int32 [tokens].
        """
        return self._content.positions(*self._rows)

    @cached_property
    def labels(self) -> Labels:
        """Who says each token, and which cell of which grid it is; raises UsageError where the run
        was stored without labels.
        """
        return Labels(**{name: self.column(name) for name in NO_LABELS})

    def column(self, name: str) -> np.ndarray:
        """A column of the prompt's tokens, by its name; raises UsageError where the run stored
        none.
        """
        return self._content.column(name, *self._rows)

    def activation(self, layer: int, site: Site | None = None) -> np.ndarray:
        """What the site gave at each token; [tokens, hidden] in the storage dtype.

        `site` may be left out where the dataset has one. Raises UsageError where it does not hold
        that layer or site.
        """
        return self._content.activations(self._resolve(layer, site), *self._rows)

    def flags(self, layer: int, site: Site | None = None) -> np.ndarray:
        """First, special and sink tokens, as bits (docs/formats.md); which are sinks differs by
        layer and site.
        """
        sinks = self._content.sinks(self._resolve(layer, site), *self._rows)
        return self.column("flags") | np.where(sinks, np.uint8(SINK), np.uint8(0))

    def norms(self, layer: int, site: Site | None = None) -> np.ndarray:
        """The Euclidean norm of each token's activation, as it is stored; float32 [tokens]."""
        return self._content.norms(self._resolve(layer, site), *self._rows)

    def __len__(self) -> int:
        begin, end = self._rows
        return end - begin

    def __repr__(self) -> str:
        return f"ActivationSample({self.source or '.'}, sample_idx={self.sample_idx}, tokens={len(self)})"

    @cached_property
    def _words(self) -> Words:
        return self._content.words()[self._number]

    @cached_property
    def _rows(self) -> tuple[int, int]:
        begin, end = self._content.offsets()[self._number : self._number + 2].tolist()
        return begin, end
