"""The shards of a dataset in order, with a cache of their small parts.

For safetensors, small parts stay in memory once read: layouts, offsets, sample numbers and usual
norms. That is about 20 bytes per sample and 1 kB per file. For pickles nothing is kept here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

from layertap.reader.sources import Source
from layertap.shards.decode import open_shard
from layertap.shards.manifest import ShardEntry
from layertap.shards.shard import Shard

T = TypeVar("T")

_READERS = 8


class Shards:
    """Every shard of every source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._entries = tuple((source, entry) for source in sources for entry in source.manifest.shards)
        self.tokens = tuple(entry.tokens for _, entry in self._entries)
        self.first_samples = tuple(accumulate((entry.samples for _, entry in self._entries), initial=0))
        """The index in the dataset of each shard's first sample, then the number of all samples."""
        self.by_parts = tuple(source.manifest.format == "safetensors" for source, _ in self._entries)
        """Whether parts of each shard can be read."""
        self._kept: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> tuple[Source, ShardEntry]:
        return self._entries[number]

    def __iter__(self) -> Iterator[tuple[Source, ShardEntry]]:
        return iter(self._entries)

    def local(self, number: int) -> bool:
        """Return whether a shard is on this machine."""
        return self._entries[number][0].store.local

    def content(self, number: int) -> Shard:
        """Open a shard."""
        found = self._kept.get(number)
        if found is None:
            source, entry = self._entries[number]
            found = open_shard(source.store, source.manifest, entry)
            if self.by_parts[number]:
                found = self._kept.setdefault(number, found)
        return found

    @property
    def readers(self) -> int:
        """How many pieces are read at once; few for pickles, because each is a whole shard."""
        return _READERS if all(self.by_parts) else 2

    def each(self, call: Callable[[int], T]) -> list[T]:
        """Call `call` with the number of each shard, several at once, and return the results."""
        with ThreadPoolExecutor(self.readers) as pool:
            return list(pool.map(call, range(len(self))))

    @property
    def digest(self) -> str:
        """Equal for the same bytes in the same order, wherever they are."""
        return self.digests[-1]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """The digest of no shard, of the first one, of the first two, ..., of all."""
        digest = hashlib.sha256()
        found = [digest.hexdigest()]
        for source, entry in self._entries:
            digest.update(f"{source.manifest.fingerprint} {entry.index} {entry.tokens}\n".encode())
            for file in entry.files:
                digest.update(f"{file.path} {file.crc32c}\n".encode())
            found.append(digest.hexdigest())
        return tuple(found)
