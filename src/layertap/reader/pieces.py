"""Tokens in pieces: the unit in which a dataset is put into an order, dealt out to ranks, and read.

A piece of safetensors is a run of at most `piece_tokens` rows of one shard, a range of each file. A piece of pickles
is a shard, which cannot be read by parts.

Rank r of W has the tokens from r/W to (r+1)/W of the sequence of pieces, in the order of the epoch, counting only
tokens that are not excluded. Shares differ by one token at most, and a rank reads what is its own and no more (a piece
on a boundary is read by both).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layertap.reader.config import BatchConfig
from layertap.reader.content import ShardContent
from layertap.reader.shards import Shards

_READERS = 8
_LONG_PIECE = 16_384


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens that were read and not excluded."""

    activations: Sequence[np.ndarray]
    """One [rows, hidden] for each tap."""
    token_ids: np.ndarray
    samples: np.ndarray
    """Each row's sample, by its place in the dataset."""
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(
            [activations[rows] for activations in self.activations],
            self.token_ids[rows],
            self.samples[rows],
            self.positions[rows],
        )


@dataclass(frozen=True)
class Cursor:
    """A place in an epoch's order: so many pieces, and so many tokens of the next that are not excluded."""

    piece: int
    row: int


class Pieces:
    """All tokens of a dataset as one configuration cuts them."""

    def __init__(self, shards: Shards, config: BatchConfig) -> None:
        self._shards = shards
        self._config = config
        spans = [_spans(number, shards, config) for number in range(len(shards))]
        self._spans = np.concatenate([np.empty((0, 3), np.int64), *spans])

    def __len__(self) -> int:
        return len(self._spans)

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the pieces as they come in an epoch."""
        if not self._config.shuffle:
            return np.arange(len(self))
        return np.random.default_rng((self._config.seed, epoch)).permutation(len(self))

    @property
    def readers(self) -> int:
        """How many pieces are read at once; of pickles few, since each is a shard in memory."""
        return _READERS if all(self._shards.by_parts) else 2

    @cached_property
    def counts(self) -> np.ndarray:
        """How many tokens of each piece are not excluded; reads all flags where there is something to exclude."""
        if not self._config.exclude:
            return self._spans[:, 2] - self._spans[:, 1]
        with ThreadPoolExecutor(self.readers) as pool:
            parts = list(pool.map(self._count, range(len(self._shards))))
        return np.concatenate([np.empty(0, np.int64), *parts])

    def locate(self, order: np.ndarray, token: int) -> Cursor:
        """Where the token stands that has `token` others before it."""
        ends = np.cumsum(self.counts[order])
        piece = int(np.searchsorted(ends, token, side="right"))
        return Cursor(piece, token - int(ends[piece - 1] if piece else 0))

    def read(self, number: int) -> Rows:
        """The tokens of a piece that are not excluded."""
        shard, begin, end = self._spans[number].tolist()
        content, taps = self._shards.content(shard), self._config.taps
        activations = [content.activations(tap, begin, end, own=self._config.shuffle) for tap in taps]
        token_ids = content.token_ids(begin, end)
        offsets = content.offsets()
        rows = np.arange(begin, end)
        samples = np.searchsorted(offsets, rows, side="right") - 1
        positions = (rows - offsets[samples]).astype(np.int32)
        samples += self._shards.first_samples[shard]
        read = Rows(activations, token_ids, samples, positions)
        if not self._config.exclude:
            return read
        kept = np.flatnonzero(_kept(content, self._config, begin, end))
        return Rows([rows[kept] for rows in activations], token_ids[kept], samples[kept], positions[kept])

    def _count(self, shard: int) -> np.ndarray:
        content = self._shards.content(shard)
        kept = _kept(content, self._config, 0, self._shards.tokens[shard])
        first, behind = np.searchsorted(self._spans[:, 0], (shard, shard + 1))
        begins = self._spans[first:behind, 1]
        return np.add.reduceat(kept.astype(np.int64), begins) if len(begins) else begins


def _spans(number: int, shards: Shards, config: BatchConfig) -> np.ndarray:
    """(shard, begin, end) of each piece of a shard."""
    tokens = shards.tokens[number]
    length = config.piece_tokens if config.shuffle else _LONG_PIECE
    if not shards.by_parts[number] or (shards.local(number) and not config.shuffle):
        length = max(tokens, 1)
    begins = np.arange(0, tokens, length)
    ends = np.append(begins[1:], tokens)[: len(begins)]
    return np.stack([np.full_like(begins, number), begins, ends], axis=1)


def _kept(content: ShardContent, config: BatchConfig, begin: int, end: int) -> np.ndarray:
    taps = config.taps if "sink" in config.exclude else config.taps[:1]
    flags = np.bitwise_or.reduce([content.flags(tap, begin, end) for tap in taps])
    return (flags & config.excluded_bits) == 0


def rank_share(tokens: int, rank: int, world_size: int) -> tuple[int, int]:
    """The tokens of a rank, from and to."""
    return rank * tokens // world_size, (rank + 1) * tokens // world_size
