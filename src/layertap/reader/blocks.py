"""Turn a supply of tokens into blocks of rows, each for several batches.

When shuffled, a block is a pool. It is filled with pieces from all over the dataset, in the order
of the epoch. Each token is copied directly to its place in a random permutation of the pool. That
is the only copy; batches are slices of the pool. A pool is never reused, so you may keep a batch
(which keeps its pool in memory).

In order, a block is a batch. It is a view of a piece if it lies in one piece, has one tap and keeps
its dtype; otherwise it is assembled.

A row is a token, or with `sequence` a run of tokens. Then everything except `samples` has a second
axis for the tokens of the run. handover.py turns rows into the trainer's batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from layertap.errors import UsageError
from layertap.reader.config import BatchConfig
from layertap.reader.pieces import Rows, Supply

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows in the order of the batches. Only the last block of an epoch may hold a partial
    batch.
    """

    activations: np.ndarray | list[np.ndarray]
    """[rows, taps, width] if all taps have one width, else one [rows, width] per tap; with runs,
    [rows, sequence, taps, width]."""
    columns: Mapping[str, np.ndarray]
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: slice | np.ndarray) -> "Block":
        apart = isinstance(self.activations, list)
        activations = [array[rows] for array in self.activations] if apart else self.activations[rows]
        return Block(activations, {name: values[rows] for name, values in self.columns.items()}, self.samples[rows])

    def tap(self, number: int) -> np.ndarray:
        """Return a view of one tap; [rows, width], or with runs [rows, sequence, width]."""
        return self.activations[number] if isinstance(self.activations, list) else self.activations[..., number, :]

    def put(self, places: np.ndarray | slice, rows: Rows) -> None:
        """Copy `rows` to these places; raises UsageError for what float16 cannot hold."""
        for tap, activations in enumerate(rows.activations):
            target = self.tap(tap)
            _plain(target)[places] = _plain(round_to(activations, target.dtype))
        self.put_columns(places, rows)

    def put_columns(self, places: np.ndarray | slice, rows: Rows) -> None:
        """Copy the columns and sample numbers of `rows` to these places."""
        for name, values in rows.columns.items():
            self.columns[name][places] = values
        self.samples[places] = rows.samples


def round_to(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`values` as `dtype`; raises UsageError where float16 would make an infinity of a finite one,
    as of the sinks of some models.
    """
    with np.errstate(over="ignore"):
        made = values.astype(dtype, copy=False)
    if dtype == np.float16 and (lost := np.isinf(made)).any() and (finite := lost & np.isfinite(values)).any():
        largest = float(np.abs(values[finite].astype(np.float64)).max())
        raise UsageError(
            f'an activation of {largest:g} is beyond what float16 holds (65504); give dtype="bfloat16" or'
            ' "float32", or leave such tokens out with exclude={"sink"}'
        )
    return made


def _plain(array: np.ndarray) -> np.ndarray:
    """View 16-bit floats as integers, which numpy copies fast."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


@dataclass(frozen=True)
class BlockLayout:
    """The shapes and dtypes of a row of a block."""

    widths: tuple[int, ...]
    """The width of each tap."""
    dtype: np.dtype
    columns: Mapping[str, np.dtype]
    sequence: int | None = None

    def make_room(self, rows: int) -> Block:
        """Allocate a block to fill."""
        shape = (rows,) if self.sequence is None else (rows, self.sequence)
        activations: np.ndarray | list[np.ndarray]
        if len(set(self.widths)) == 1:
            activations = np.empty((*shape, len(self.widths), self.widths[0]), self.dtype)
        else:
            activations = [np.empty((*shape, width), self.dtype) for width in self.widths]
        columns = {name: np.empty(shape, dtype) for name, dtype in self.columns.items()}
        return Block(activations, columns, np.empty(rows, np.int64))


def fill_pools(
    supply: Supply, config: BatchConfig, layout: BlockLayout, epoch: int, first: int, most: int
) -> Iterator[Block]:
    """Yield pools from number `first` of the epoch, with at most `most` rows in all.

    The last one may be shorter.
    """
    number = first
    while most > 0:
        size = min(config.pool_rows, most)
        pool, places, filled = layout.make_room(size), shuffled_places(config, epoch, number, size), 0
        for rows in supply.take(size):
            pool.put(places[filled : filled + len(rows)], rows)
            filled += len(rows)
        if filled:
            yield pool if filled == size else pool[np.sort(places[:filled])]
        most, number = most - size if filled == size else 0, number + 1


def shuffled_places(config: BatchConfig, epoch: int, number: int, size: int) -> np.ndarray:
    """Return where in a pool its rows go; their relative order does not depend on `size`."""
    shuffled = np.random.default_rng((config.seed, epoch, config.rank, number)).permutation(config.pool_rows)[:size]
    return shuffled if size == config.pool_rows else shuffled.argsort().argsort()


def take_in_order(supply: Supply, config: BatchConfig, layout: BlockLayout) -> Iterator[Block]:
    """Yield batches in the order of the supply."""
    while parts := list(supply.take(config.batch_rows)):
        yield _join(parts, layout)


def _join(parts: Sequence[Rows], layout: BlockLayout) -> Block:
    first = parts[0]
    if len(parts) == 1 and len(layout.widths) == 1 and first.activations[0].dtype == layout.dtype:
        return Block(first.activations[0][..., None, :], first.columns, first.samples)
    block, filled = layout.make_room(sum(map(len, parts))), 0
    for rows in parts:
        block.put(slice(filled, filled + len(rows)), rows)
        filled += len(rows)
    return block


def numpy_dtype(name: str) -> np.dtype:
    """Return the dtype with this name, including bfloat16."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)
