"""Pieces: the units in which a dataset is ordered, split between ranks, and read.

In safetensors, a piece is a range of at most `piece_tokens` tokens of one shard. In pickles it is a
whole shard, because parts cannot be read. For batches of runs, a piece is one or more whole
samples, because a run would break at the end of a piece. For this, the offsets of all shards are
read first.

A piece gives rows: tokens that are not excluded, or runs of these (choice.py). Rank r of W has the
rows from r/W to (r+1)/W of the sequence of pieces, in the order of the epoch. Shares differ by at
most one row, and a rank reads only its own share (both ranks read a piece on their boundary).
Several pieces are read ahead at once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from layertap.core.taps import Tap
from layertap.reader.choice import choose_tokens, cut_runs
from layertap.reader.config import BatchConfig
from layertap.reader.shards import Shards
from layertap.reader.workers import Workers
from layertap.shards.shard import Shard

_LONG_PIECE = 16_384


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens that were read and not excluded, or runs of them."""

    activations: Sequence[np.ndarray]
    """One [rows, width] per tap, or [rows, sequence, width]."""
    columns: Mapping[str, np.ndarray]
    """Each [rows] or [rows, sequence]."""
    samples: np.ndarray
    """The sample of each row, as an index into the dataset."""

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
    """A place in an epoch's order: a number of pieces, then a number of rows of the next."""

    piece: int
    row: int


class Pieces:
    """All tokens of a dataset, cut into pieces by one configuration."""

    def __init__(self, shards: Shards, config: BatchConfig) -> None:
        self._shards = shards
        self._config = config

    def __len__(self) -> int:
        return len(self._spans)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the pieces in the order of an epoch."""
        if not self._config.shuffle:
            return np.arange(len(self))
        return np.random.default_rng((self._config.seed, epoch)).permutation(len(self))

    @property
    def readers(self) -> int:
        """How many pieces are read at once."""
        return self._shards.readers

    @property
    def counts(self) -> np.ndarray:
        """How many rows each piece gives; reads columns if tokens are selected."""
        return self._counted[0]

    @property
    def left_over(self) -> int:
        """How many tokens are not excluded but do not fill a run."""
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[np.ndarray, int]:
        if not self._config.leaves_out and self._config.sequence is None:
            return self._spans[:, 2] - self._spans[:, 1], 0
        parts = self._shards.each(partial(self._count, self._spans))
        return np.concatenate([np.empty(0, np.int64), *(counts for counts, _ in parts)]), sum(own for _, own in parts)

    def locate(self, order: np.ndarray, row: int) -> Cursor:
        """Return the place of row number `row`, counted from 0."""
        ends = np.cumsum(self.counts[order])
        piece = int(np.searchsorted(ends, row, side="right"))
        return Cursor(piece, row - int(ends[piece - 1] if piece else 0))

    def read(self, number: int) -> Rows:
        """Read the rows of a piece."""
        shard, begin, end = self._spans[number].tolist()
        content, config = self._shards.content(shard), self._config
        activations = [content.activations(tap, begin, end, own=config.shuffle) for tap in config.taps]
        columns = {name: content.column(name, begin, end) for name in config.columns}
        columns["positions"] = content.positions(begin, end)
        samples = _samples(content, begin, end) + self._shards.first_samples[shard]
        read = Rows(activations, columns, samples)
        if not config.leaves_out and config.sequence is None:
            return read
        rows, _ = self._choose(content, begin, end)
        chosen = read[rows]
        return chosen if config.sequence is None else Rows(chosen.activations, chosen.columns, samples[rows[:, 0]])

    def _choose(self, content: Shard, begin: int, end: int) -> tuple[np.ndarray, int]:
        """Return the chosen tokens, counted from `begin`, as [rows] or [rows, sequence]; and how
        many are left over.
        """
        chosen = choose_tokens(ShardTokens(content, begin, end), self._config, end - begin)
        if self._config.sequence is None:
            return np.flatnonzero(chosen), 0
        rows = cut_runs(chosen, _samples(content, begin, end), content.positions(begin, end), self._config.sequence)
        return rows, int(chosen.sum()) - rows.size

    def _count(self, spans: np.ndarray, shard: int) -> tuple[np.ndarray, int]:
        """Count the rows of each piece of a shard, and the shard's left-over tokens."""
        tokens = self._shards.tokens[shard]
        rows, left_over = self._choose(self._shards.content(shard), 0, tokens)
        bounds = np.append(spans[spans[:, 0] == shard, 1], tokens)
        return np.diff(np.searchsorted(rows if rows.ndim == 1 else rows[:, 0], bounds)), left_over

    @cached_property
    def _spans(self) -> np.ndarray:
        """(shard, begin, end) of each piece."""
        numbers = range(len(self._shards))
        spans = map(self._spans_of, numbers) if self._config.sequence is None else self._shards.each(self._spans_of)
        return np.concatenate([np.empty((0, 3), np.int64), *spans])

    def _spans_of(self, number: int) -> np.ndarray:
        shards, config = self._shards, self._config
        tokens = shards.tokens[number]
        length = config.piece_tokens if config.shuffle else _LONG_PIECE
        if not shards.by_parts[number] or (shards.local(number) and not config.shuffle):
            length = max(tokens, 1)
        begins = np.arange(0, tokens, length)
        if config.sequence is not None and length < tokens:
            begins = _at_samples(shards.content(number).offsets(), length)
        ends = np.append(begins[1:], tokens)[: len(begins)]
        return np.stack([np.full_like(begins, number), begins, ends], axis=1)


@dataclass(frozen=True)
class ShardTokens:
    """Some tokens of a shard, for `choice`."""

    content: Shard
    begin: int
    end: int

    def column(self, name: str) -> np.ndarray:
        return self.content.column(name, self.begin, self.end)

    def norms(self, tap: Tap) -> np.ndarray:
        return self.content.norms(tap, self.begin, self.end)

    def sinks(self, tap: Tap, factor: float) -> np.ndarray:
        return self.content.sinks(tap, self.begin, self.end, factor)


def _samples(content: Shard, begin: int, end: int) -> np.ndarray:
    """Return the sample of each token, as an index into its shard."""
    return np.searchsorted(content.offsets(), np.arange(begin, end), side="right") - 1


def _at_samples(offsets: np.ndarray, length: int) -> np.ndarray:
    """Return where pieces of whole samples begin.

    A piece is at most `length` tokens, unless a single sample is longer.
    """
    begins, end = [0], 0
    for bound in offsets[1:].tolist():
        if bound - begins[-1] > length and end > begins[-1]:
            begins.append(end)
        end = bound
    return np.array(begins)


def rank_share(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the range of rows of a rank (begin, end)."""
    return rank * rows // world_size, (rank + 1) * rows // world_size


@dataclass(frozen=True, eq=False)
class Share:
    """What is still to read: from a place in the epoch's order, at most this many rows."""

    order: np.ndarray
    start: Cursor
    most: int


class Supply:
    """Returns a share in parts of any length.

    Dismiss its `readers` at the end. After that, `take` raises CancelledError.
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
        """Yield the next rows, `wanted` in all, or as many as there are."""
        wanted = min(wanted, self._left)
        while wanted and (rows := self._next()) is not None:
            self._open = rows[wanted:] if len(rows) > wanted else None
            part = rows[:wanted]
            wanted -= len(part)
            self._left -= len(part)
            yield part

    def _next(self) -> Rows | None:
        """Return the rest of the open piece, or the next one."""
        if self._open is not None:
            return self._open
        while len(self._ahead) < 2 * self._pieces.readers and (number := next(self._numbers, None)) is not None:
            self._ahead.append(self.readers.submit(partial(self._pieces.read, number)))
        if not self._ahead:
            return None
        rows, skip = self._ahead.popleft().result(), self._skip
        self._skip = 0
        return rows[skip:]
