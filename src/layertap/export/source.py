"""What is exported: the tokens of a dataset that are wanted, shard by shard.

A shard is the unit of an export. What is written of it follows from the shard and the settings
alone, so an export that was stopped goes on with the first shard that is not there, and shards are
never joined. Within a shard, tokens come in chunks of some `_CHUNK_BYTES`: of safetensors no more
is in memory, of pickles, which can only be read whole, the shard and a chunk. From afar, where a
chunk is a request for each tap and column, as many chunks are read at once as the reader reads
pieces.

Chunks are read into memory of their own. A map of the file would count every page that was touched
as the process's own, and memory would seem to grow with the data.
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
from layertap.shards.shard import Shard, Words

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Wanted:
    """Which layers, sites and tokens; empty: all."""

    layers: tuple[int, ...] = ()
    sites: tuple[Site, ...] = ()
    exclude: frozenset[Flag] = frozenset()
    include: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SampleWords:
    """What is known of a sample beside its tokens."""

    source: str
    """The folder that it is from, below the dataset's."""
    sample_idx: int
    words: Words


class Source:
    """The wanted tokens of a dataset.

    Raises UsageError where the dataset is empty, or does not hold what is wanted.
    """

    def __init__(self, dataset: ActivationDataset, wanted: Wanted, columns: Collection[str] | None = None) -> None:
        """`columns` are those that are read; None: all that every run stored."""
        self.dataset = dataset
        self._shards = dataset.shards
        self.taps = tuple(
            Tap(layer, site) for site in wanted.sites or dataset.sites for layer in wanted.layers or dataset.layers
        )
        self.widths = {tap: dataset.width(*tap) for tap in self.taps}
        """How many numbers each tap has a token."""
        if not len(self._shards):
            raise UsageError(f"{dataset.path}: holds no shard yet; there is nothing to export")
        stored = [source.manifest.columns for source in self._shards.sources]
        common = [name for name in COLUMNS if name == "positions" or all(name in own for own in stored)]
        self.columns = tuple(name for name in common if columns is None or name in columns)
        """The columns that each token brings."""
        self._config = BatchConfig(
            batch_size=1, taps=self.taps, columns=self.columns, exclude=wanted.exclude, include=wanted.include
        )

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def digest(self) -> str:
        """Equal where the same shards lie in the same order."""
        return self._shards.digest

    @property
    def token_values(self) -> int:
        """How many numbers a token has at all taps."""
        return sum(self.widths.values())

    @property
    def chunk_tokens(self) -> int:
        """How many tokens are read at once, if they can be."""
        return max(1, _CHUNK_BYTES // (4 * self.token_values))

    def tokens(self, shard: int) -> int:
        """How many tokens the shard has, wanted or not."""
        return self._shards.tokens[shard]

    def chunks(self, shard: int) -> Iterator[Rows]:
        """The wanted tokens of a shard, in their order."""
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
        """The samples of a shard; the first one's place in the dataset is `first_sample`."""
        content, name = self._shards.content(shard), self._shards[shard][0].name
        numbers = content.sample_idx().tolist()
        return [SampleWords(name, number, words) for number, words in zip(numbers, content.words(), strict=True)]

    def first_sample(self, shard: int) -> int:
        """The place in the dataset of the shard's first sample."""
        return self._shards.first_samples[shard]


def _read_ahead(read: Callable[[int], Rows], begins: Iterable[int], at_once: int) -> Iterator[Rows]:
    """The same as `map`, several at once."""
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
    """Tokens that follow each other, as one; of one part no copy is made."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Rows(
        [np.concatenate([part.activations[tap] for part in parts]) for tap in range(len(first.activations))],
        {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
        np.concatenate([part.samples for part in parts]),
    )
