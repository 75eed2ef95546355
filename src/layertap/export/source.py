"""The wanted tokens of a dataset, shard by shard.

A shard is the unit of an export. Its output depends only on the shard and the settings. So an
export resumes at the first missing shard, and shards are never joined. Within a shard, tokens come
in chunks of about `_CHUNK_BYTES`. For safetensors, no more is in memory; for pickles, which must be
read whole, the shard and a chunk. From a bucket, where a chunk is one request per tap and column,
several chunks are read at once, as many as the reader's pieces.

Chunks are copied into memory. With a mapped file, every touched page would count as the process's
own, and memory would seem to grow with the data.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from layertap.core.columns import COLUMNS
from layertap.core.taps import Site, Tap
from layertap.errors import UsageError
from layertap.reader.choice import choose_tokens
from layertap.reader.config import BatchConfig, Flag
from layertap.reader.dataset import ActivationDataset
from layertap.reader.pieces import Rows, ShardTokens
from layertap.reader.sources import require_prefix_flags
from layertap.shards.shard import Shard, Words

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Wanted:
    """The wanted layers, sites and tokens; empty means all."""

    layers: tuple[int, ...] = ()
    sites: tuple[Site, ...] = ()
    exclude: frozenset[Flag] = frozenset()
    include: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SampleWords:
    """The facts about a sample besides its tokens."""

    source: str
    """Its output folder, below the dataset's."""
    sample_idx: int
    words: Words


class Source:
    """The wanted tokens of a dataset.

    Raises UsageError if the dataset is empty, or lacks what is wanted.
    """

    def __init__(self, dataset: ActivationDataset, wanted: Wanted, columns: Collection[str] | None = None) -> None:
        """`columns` are the ones to read; None means all that every run stored."""
        self.dataset = dataset
        self._shards = dataset.shards
        self.taps = tuple(
            Tap(layer, site) for site in wanted.sites or dataset.sites for layer in wanted.layers or dataset.layers
        )
        self.widths = {tap: dataset.width(*tap) for tap in self.taps}
        """How many numbers each tap has per token."""
        if not len(self._shards):
            raise UsageError(f"{dataset.path}: has no shard yet, so there is nothing to export; extract first")
        stored = [source.manifest.columns for source in self._shards.sources]
        common = [name for name in COLUMNS if name == "positions" or all(name in own for own in stored)]
        self.columns = tuple(name for name in common if columns is None or name in columns)
        """The columns of each token."""
        if "prefix" in wanted.exclude:
            require_prefix_flags(dataset.path, self._shards.sources)
        self._config = BatchConfig(
            batch_size=1, taps=self.taps, columns=self.columns, exclude=wanted.exclude, include=wanted.include
        )

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def digest(self) -> str:
        """Equal for the same shards in the same order."""
        return self._shards.digest

    @property
    def token_values(self) -> int:
        """How many numbers a token has at all taps together."""
        return sum(self.widths.values())

    @property
    def chunk_tokens(self) -> int:
        """How many tokens are read at once, if possible."""
        return max(1, _CHUNK_BYTES // (4 * self.token_values))

    def tokens(self, shard: int) -> int:
        """Return how many tokens the shard has, wanted or not."""
        return self._shards.tokens[shard]

    def chunks(self, shard: int) -> Iterator[Rows]:
        """Return the wanted tokens of a shard, in order."""
        read = partial(self._read, self._shards.content(shard), self.first_sample(shard), self.tokens(shard))
        begins = range(0, self.tokens(shard), self.chunk_tokens)
        if self._shards.local(shard) or not self._shards.by_parts[shard]:
            return map(read, begins)
        return _read_ahead(read, begins, self._shards.readers)

    def _read(self, content: Shard, first: int, tokens: int, begin: int) -> Rows:
        config, end = self._config, min(begin + self.chunk_tokens, tokens)
        samples = np.searchsorted(content.offsets(), np.arange(begin, end), side="right") - 1 + first
        columns = {name: content.column(name, begin, end) for name in self.columns}
        rows = Rows([content.activations(tap, begin, end, own=True) for tap in self.taps], columns, samples)
        if not config.leaves_out:
            return rows
        return rows[np.flatnonzero(choose_tokens(ShardTokens(content, begin, end), config, end - begin))]

    def samples(self, shard: int) -> Sequence[SampleWords]:
        """Return the samples of a shard; the first one's index in the dataset is `first_sample`."""
        content, name = self._shards.content(shard), self._shards[shard][0].name
        numbers = content.sample_idx().tolist()
        return [SampleWords(name, number, words) for number, words in zip(numbers, content.words(), strict=True)]

    def first_sample(self, shard: int) -> int:
        """Return the index in the dataset of the shard's first sample."""
        return self._shards.first_samples[shard]


def _read_ahead(read: Callable[[int], Rows], begins: Iterable[int], at_once: int) -> Iterator[Rows]:
    """Do the same as `map`, with several calls at once."""
    pool, coming = ThreadPoolExecutor(at_once, "read-activations"), deque[Future[Rows]]()
    try:
        for begin in begins:
            coming.append(pool.submit(read, begin))
            if len(coming) == at_once:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenate consecutive tokens; a single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Rows(
        [np.concatenate([part.activations[tap] for part in parts]) for tap in range(len(first.activations))],
        {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
        np.concatenate([part.samples for part in parts]),
    )
