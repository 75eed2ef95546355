"""Tokens as batches to train from: seeded, dealt out to ranks, and resumable.

Each token that is wanted (included, and not excluded) comes exactly once an epoch, on one rank. How
that is done is told where it is done: pieces and shares of ranks in pieces.py, the mixing in
blocks.py. A thread fills the next pool while the present one is used, so two are in memory, and the
pieces that are under way.

An iterator may be left at any batch and in any way, also by Python's exit (workers.py). Reading
then ends with the pieces that are under way. For this the generators here have no clean-up of their
own: a generator that is destroyed late at exit would find modules that are empty already.

A position is two numbers, the epoch and the batches of it that were handed out: where these stand
follows from the configuration and the manifests (and, where tokens are chosen, from their columns).
So a state is small, is good for every rank, and goes with the dataset when that is moved. What
comes after it is byte for byte what would have come.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layertap.core.columns import COLUMNS
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.blocks import (
    Block,
    BlockLayout,
    convert,
    fill_pools,
    numpy_dtype,
    require_framework,
    take_in_order,
)
from layertap.reader.config import BatchConfig
from layertap.reader.pieces import Cursor, Pieces, Share, Supply, rank_share
from layertap.reader.shards import Shards
from layertap.reader.workers import Ahead

_STATE_VERSION = 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Some tokens; row i of everything is the same one."""

    activations: Any
    """[tokens, taps, width], an array of the framework that you asked for. Where taps differ in
    width: a dict with one [tokens, width] for each tap."""
    columns: Mapping[str, np.ndarray]
    """The columns that you asked for, and positions."""
    samples: np.ndarray
    """Which sample each token is from, as `dataset[i]` counts them; int64 [tokens]."""

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [tokens]"""
        return self.columns["token_ids"]

    @property
    def positions(self) -> np.ndarray:
        """The token's place in its sample; int32 [tokens]."""
        return self.columns["positions"]

    def __len__(self) -> int:
        return len(self.samples)


class Batches:
    """One way of going through a dataset; `ActivationDataset.batches` makes it.

    Each `for` goes through the rest of an epoch, the next one through the next epoch. `len` is the
    number of batches of an epoch on this rank.
    """

    def __init__(self, shards: Shards, config: BatchConfig, widths: tuple[int, ...], dtype: str) -> None:
        require_framework(config.as_)
        self.taps: tuple[Tap, ...] = config.taps
        """What stands along the second axis of activations."""
        self._shards = shards
        self._config = config
        columns = {name: COLUMNS[name] for name in (*config.columns, "positions")}
        self._layout = BlockLayout(widths, numpy_dtype(dtype), columns)
        self._pieces = Pieces(shards, config)
        self._epoch = self._batch = 0
        self._iteration = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, counted from 0."""
        return self._epoch

    def __len__(self) -> int:
        config, tokens = self._config, int(self._pieces.counts.sum())
        if config.drop_last:
            return tokens // (config.world_size * config.batch_size)
        begin, end = rank_share(tokens, config.rank, config.world_size)
        return -(-(end - begin) // config.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch stands, as JSON; the same on all ranks that have had as many
        batches.
        """
        position = {"version": _STATE_VERSION, "epoch": self._epoch, "batch": self._batch}
        return position | {"order": self._config.order(), "dataset": self._shards.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises UsageError where another dataset or configuration was meant."""
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"the state is of version {state.get('version')}, this is {_STATE_VERSION}")
        if state["dataset"] != self._shards.digest:
            raise UsageError("the state is of another dataset, or of this one when it had other shards; start anew")
        there, now = state["order"], self._config.order()
        differing = [
            f"{name}: {there.get(name)} there, {now.get(name)} now"
            for name in dict.fromkeys((*now, *there))
            if there.get(name) != now.get(name)
        ]
        if differing:
            raise UsageError(
                "the state is of another order; give the same settings, or start anew:\n  " + "\n  ".join(differing)
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._iteration += 1

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        own = self._iteration
        for rows in self._rows():
            self._batch += 1
            yield Batch(self._convert(rows), rows.columns, rows.samples)
            if own != self._iteration:
                raise UsageError("another loop over these batches has begun meanwhile; go on with that one")
        self._epoch, self._batch = self._epoch + 1, 0

    def _convert(self, rows: Block) -> Any:  # noqa: ANN401 - of a framework that may not be there
        """The activations as `Batch` hands them out."""
        if isinstance(rows.activations, np.ndarray):
            return convert(rows.activations, self._config.as_)
        return {tap: convert(own, self._config.as_) for tap, own in zip(self.taps, rows.activations, strict=True)}

    def _rows(self) -> Iterator[Block]:
        """What is left of the epoch, a batch at a time."""
        config = self._config
        left = len(self) - self._batch if config.drop_last and config.world_size > 1 else sys.maxsize
        blocks = self._blocks(self._epoch, self._batch)
        for block in blocks:
            for begin in range(0, len(block), config.batch_size):
                rows = block[begin : begin + config.batch_size]
                if left <= 0 or (config.drop_last and len(rows) < config.batch_size):
                    blocks.close()
                    return
                left -= 1
                yield rows

    def _blocks(self, epoch: int, batch: int) -> Ahead[Block]:
        """Blocks from that batch on; each is made while the one before is used."""
        config = self._config
        row = batch * config.batch_size
        pool = row // config.pool_rows if config.shuffle else 0
        done = pool * config.pool_rows if config.shuffle else row
        share = self._share(epoch, done)
        supply = Supply(self._pieces, share)
        if config.shuffle:
            made = fill_pools(supply, config, self._layout, epoch, pool, share.most)
        else:
            made = take_in_order(supply, config, self._layout)
        return Ahead(_without_first(made, row - done), [supply.readers], "make-batches")

    def _share(self, epoch: int, done: int) -> Share:
        """What this rank has of an epoch, but for the first `done` tokens of it."""
        config, pieces = self._config, self._pieces
        order = pieces.order(epoch)
        if config.world_size == 1 and not done:  # without reading flags
            return Share(order, Cursor(0, 0), sum(self._shards.tokens))
        tokens = int(pieces.counts.sum())
        begin, end = rank_share(tokens, config.rank, config.world_size)
        last = pieces.locate(order, end)
        own = order[: last.piece + (last.row > 0)]  # what lies behind is not read ahead
        return Share(own, pieces.locate(order, begin + done), max(0, end - begin - done))


def _without_first(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The same, but for the first `rows` of the first one."""
    for block in blocks:
        yield block[rows:]
        rows = 0
