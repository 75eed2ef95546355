"""Batches, several at a time, out of a supply of tokens.

Shuffled, a block is a pool: it is filled with pieces, which the epoch's order takes from all over the dataset, and each
token goes straight to its place in a random permutation of the pool. That is the one copy that is made; batches are
slices of the pool. A pool is never used again, so a batch may be kept (and keeps its pool in memory).

In order, a block is a batch: a view of the piece where it lies in one, has one tap and keeps its dtype, else put
together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.reader.config import BatchConfig
from layertap.reader.pieces import Rows
from layertap.reader.supply import Supply


@dataclass(frozen=True, eq=False)
class Block:
    """Tokens in the order in which they are handed out: whole batches, but for the last block of an epoch."""

    activations: np.ndarray
    """[rows, taps, hidden]"""
    token_ids: np.ndarray
    samples: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: slice | np.ndarray) -> "Block":
        return Block(self.activations[rows], self.token_ids[rows], self.samples[rows], self.positions[rows])

    def put(self, places: np.ndarray | slice, rows: Rows) -> None:
        """Copy `rows` to these places."""
        for tap, activations in enumerate(rows.activations):
            target = _plain(self.activations)[:, tap]
            target[places] = _plain(activations.astype(self.activations.dtype, copy=False))
        self.token_ids[places] = rows.token_ids
        self.samples[places] = rows.samples
        self.positions[places] = rows.positions


def _plain(array: np.ndarray) -> np.ndarray:
    """16-bit floats as the integers that numpy copies as quickly as any."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


@dataclass(frozen=True)
class Shape:
    """What a row of a block is."""

    taps: int
    hidden: int
    dtype: np.dtype

    def room(self, rows: int) -> Block:
        """A block that is to be filled."""
        activations = np.empty((rows, self.taps, self.hidden), self.dtype)
        return Block(activations, np.empty(rows, np.int32), np.empty(rows, np.int64), np.empty(rows, np.int32))


def pools(supply: Supply, config: BatchConfig, shape: Shape, epoch: int, first: int, most: int) -> Iterator[Block]:
    """Pools from number `first` of the epoch on, of at most `most` tokens in all; the last one may be shorter."""
    number = first
    while most > 0:
        size = min(config.pool_rows, most)
        pool, places, filled = shape.room(size), _places(config, epoch, number, size), 0
        for rows in supply.take(size):
            pool.put(places[filled : filled + len(rows)], rows)
            filled += len(rows)
        if filled:
            yield pool if filled == size else pool[np.sort(places[:filled])]
        most, number = most - size if filled == size else 0, number + 1


def _places(config: BatchConfig, epoch: int, number: int, size: int) -> np.ndarray:
    """Where in a pool its tokens go; their order among each other does not depend on how many there are."""
    shuffled = np.random.default_rng((config.seed, epoch, config.rank, number)).permutation(config.pool_rows)[:size]
    return shuffled if size == config.pool_rows else shuffled.argsort().argsort()


def in_order(supply: Supply, config: BatchConfig, shape: Shape) -> Iterator[Block]:
    """Batches in the order of the supply."""
    while parts := list(supply.take(config.batch_size)):
        yield _joined(parts, shape)


def _joined(parts: Sequence[Rows], shape: Shape) -> Block:
    first = parts[0]
    if len(parts) == 1 and shape.taps == 1 and first.activations[0].dtype == shape.dtype:
        return Block(first.activations[0][:, None], first.token_ids, first.samples, first.positions)
    block, filled = shape.room(sum(map(len, parts))), 0
    for rows in parts:
        block.put(slice(filled, filled + len(rows)), rows)
        filled += len(rows)
    return block
