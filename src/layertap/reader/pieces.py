"""Tokens in pieces: the unit in which a dataset is put into an order, dealt out to ranks, and read.

A piece of safetensors is a run of at most `piece_tokens` rows of one shard, a range of each tap. A
piece of pickles is a shard, which cannot be read by parts.

Rank r of W has the tokens from r/W to (r+1)/W of the sequence of pieces, in the order of the epoch,
counting only tokens that are not excluded. Shares differ by one token at most, and a rank reads its
own share and no more (both ranks read a piece on their boundary). Pieces are read ahead, several at
once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from layertap.core.columns import selected
from layertap.reader.config import BatchConfig
from layertap.reader.shards import Shards
from layertap.reader.workers import Workers
from layertap.shards.shard import Shard

_READERS = 8
_LONG_PIECE = 16_384


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens that were read and not excluded."""

    activations: Sequence[np.ndarray]
    """One [rows, width] for each tap."""
    columns: Mapping[str, np.ndarray]
    samples: np.ndarray
    """Each row's sample, by its place in the dataset."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice | np.ndarray) -> "Rows":
        return Rows(
            [activations[rows] for activations in self.activations],
            {name: values[rows] for name, values in self.columns.items()},
            self.samples[rows],
        )


@dataclass(frozen=True)
class Cursor:
    """A place in an epoch's order: so many pieces, and so many tokens of the next that are not
    excluded.
    """

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
        """How many tokens of each piece are not excluded; reads what decides it where there is
        something to exclude.
        """
        if not self._config.leaves_out:
            return self._spans[:, 2] - self._spans[:, 1]
        with ThreadPoolExecutor(self.readers) as pool:
            parts = list(pool.map(self._count, range(len(self._shards))))
        return np.concatenate([np.empty(0, np.int64), *parts])

    def locate(self, order: np.ndarray, token: int) -> Cursor:
        """The place of the token that has `token` others before it."""
        ends = np.cumsum(self.counts[order])
        piece = int(np.searchsorted(ends, token, side="right"))
        return Cursor(piece, token - int(ends[piece - 1] if piece else 0))

    def read(self, number: int) -> Rows:
        """The tokens of a piece that are not excluded."""
        shard, begin, end = self._spans[number].tolist()
        content, config = self._shards.content(shard), self._config
        activations = [content.activations(tap, begin, end, own=config.shuffle) for tap in config.taps]
        columns = {name: content.column(name, begin, end) for name in config.columns}
        offsets, rows = content.offsets(), np.arange(begin, end)
        samples = np.searchsorted(offsets, rows, side="right") - 1
        columns["positions"] = content.positions(begin, end)
        read = Rows(activations, columns, samples + self._shards.first_samples[shard])
        return read[np.flatnonzero(_kept(content, config, begin, end))] if config.leaves_out else read

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


def _kept(content: Shard, config: BatchConfig, begin: int, end: int) -> np.ndarray:
    """Which rows are included and not excluded."""
    kept = np.ones(end - begin, bool)
    if config.selections:
        labels = {name: content.column(name, begin, end) for name in ("role", "cells")}
        for names in config.selections:
            kept &= selected(labels, names)
    if config.excluded_bits:
        kept &= (content.column("flags", begin, end) & config.excluded_bits) == 0
    if "sink" in config.exclude:
        for tap in config.taps:
            kept &= ~content.sinks(tap, begin, end, config.sink_factor)
    if "nonfinite" in config.exclude:
        for tap in config.taps:
            kept &= np.isfinite(content.norms(tap, begin, end))
    return kept


def rank_share(tokens: int, rank: int, world_size: int) -> tuple[int, int]:
    """The tokens of a rank, from and to."""
    return rank * tokens // world_size, (rank + 1) * tokens // world_size


@dataclass(frozen=True, eq=False)
class Share:
    """What is still to come: from a place in the epoch's order on, at most so many tokens."""

    order: np.ndarray
    start: Cursor
    most: int


class Supply:
    """Hands out a share in whatever lengths you ask for.

    Dismiss its `readers` in the end. Asked for more after that, it raises CancelledError.
    """

    def __init__(self, pieces: Pieces, share: Share) -> None:
        self._pieces = pieces
        self._numbers = iter(share.order[share.start.piece :].tolist())
        self._skip = share.start.row
        self._left = share.most
        self._open: Rows | None = None
        self._ahead: deque[Future[Rows]] = deque()
        self.readers = Workers(pieces.readers, "read-activations")

    def take(self, wanted: int) -> Iterator[Rows]:
        """The next tokens, `wanted` in all, or as many as there are."""
        wanted = min(wanted, self._left)
        while wanted and (rows := self._next()) is not None:
            self._open = rows[wanted:] if len(rows) > wanted else None
            part = rows[:wanted]
            wanted -= len(part)
            self._left -= len(part)
            yield part

    def _next(self) -> Rows | None:
        """What is left of the open piece, or the next one."""
        if self._open is not None:
            return self._open
        while len(self._ahead) < 2 * self._pieces.readers and (number := next(self._numbers, None)) is not None:
            self._ahead.append(self.readers.submit(partial(self._pieces.read, number)))
        if not self._ahead:
            return None
        rows, skip = self._ahead.popleft().result(), self._skip
        self._skip = 0
        return rows[skip:]
