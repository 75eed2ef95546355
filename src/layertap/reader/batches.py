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
from typing import Any

from layertap.core.columns import COLUMNS
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.blocks import Block, BlockLayout, fill_pools, take_in_order
from layertap.reader.config import BatchConfig, require_same_order
from layertap.reader.handover import Batch, HandOver, pool_dtype
from layertap.reader.pieces import Cursor, Pieces, Share, Supply, rank_share
from layertap.reader.scaling import Normalisation, same_summary
from layertap.reader.shards import Shards
from layertap.reader.workers import Ahead

_STATE_VERSION = 1


class Batches:
    """One way of going through a dataset; `ActivationDataset.batches` makes it.

    Each `for` goes through the rest of an epoch, the next one through the next epoch. `len` is the
    number of batches of an epoch on this rank.
    """

    def __init__(
        self, shards: Shards, layout: BlockLayout, config: BatchConfig, normalisation: Normalisation | None
    ) -> None:
        self.taps: tuple[Tap, ...] = config.taps
        """What stands along the axis of taps: the second one, but with `sequence` the third."""
        self.normalisation: Normalisation | None = normalisation
        """What was done to the activations; None where nothing was. It belongs into the trainer's
        checkpoint."""
        self._hand_over = HandOver(config, normalisation)
        self._shards = shards
        self._config = config
        self._layout = layout
        self._pieces = Pieces(shards, config)
        self._epoch = self._batch = 0
        self._iteration = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, counted from 0."""
        return self._epoch

    @property
    def left_over(self) -> int:
        """Tokens that fill no run of `sequence`, of all ranks, and so do not come: the ends of
        samples, and what stands between excluded tokens. Reads what decides it.
        """
        return self._pieces.left_over

    def close(self) -> None:
        """Do nothing, since no thread reads ahead; a trainer may close a stream's batches alike."""

    def __len__(self) -> int:
        config, rows = self._config, int(self._pieces.counts.sum())
        if config.drop_last:
            return rows // (config.world_size * config.batch_rows)
        begin, end = rank_share(rows, config.rank, config.world_size)
        return -(-(end - begin) // config.batch_rows)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch stands, as JSON; the same on all ranks that have had as many
        batches.
        """
        position = {"version": _STATE_VERSION, "epoch": self._epoch, "batch": self._batch}
        told = {} if self.normalisation is None else {"normalisation": self.normalisation.summary()}
        return position | {"order": self._config.order(), "dataset": self._shards.digest} | told

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises UsageError where another dataset or configuration was meant."""
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"the state is of version {state.get('version')}, this is {_STATE_VERSION}")
        if state["dataset"] != self._shards.digest:
            raise UsageError("the state is of another dataset, or of this one when it had other shards; start anew")
        require_same_order(state["order"], self._config.order())
        made = state.get("normalisation")
        own = None if self.normalisation is None else self.normalisation.summary()
        if not same_summary(made, own):
            raise UsageError(
                "the state is of activations that were normalised otherwise, which an autoencoder would take for other"
                f" data; give normalisation=, as your checkpoint has it:\n  {made} there\n  {own} now"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._iteration += 1

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        own = self._iteration
        for rows in self._rows():
            batch = self._hand_over(rows)
            self._batch += 1
            yield batch
            if own != self._iteration:
                raise UsageError("another loop over these batches has begun meanwhile; go on with that one")
        self._epoch, self._batch = self._epoch + 1, 0

    def _rows(self) -> Iterator[Block]:
        """What is left of the epoch, a batch at a time."""
        config = self._config
        left = len(self) - self._batch if config.drop_last and config.world_size > 1 else sys.maxsize
        blocks = self._blocks(self._epoch, self._batch)
        for block in blocks:
            for begin in range(0, len(block), config.batch_rows):
                rows = block[begin : begin + config.batch_rows]
                if left <= 0 or (config.drop_last and len(rows) < config.batch_rows):
                    blocks.close()
                    return
                left -= 1
                yield rows

    def _blocks(self, epoch: int, batch: int) -> Ahead[Block]:
        """Blocks from that batch on; each is made while the one before is used."""
        config = self._config
        row = batch * config.batch_rows
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
        """What this rank has of an epoch, but for the first `done` rows of it."""
        config, pieces = self._config, self._pieces
        order = pieces.order(epoch)
        if config.world_size == 1 and not done:  # without reading flags
            return Share(order, Cursor(0, 0), sum(self._shards.tokens) // config.tokens_a_row)
        rows = int(pieces.counts.sum())
        begin, end = rank_share(rows, config.rank, config.world_size)
        last = pieces.locate(order, end)
        own = order[: last.piece + (last.row > 0)]  # what lies behind is not read ahead
        return Share(own, pieces.locate(order, begin + done), max(0, end - begin - done))


def layout_of(place: str, shards: Shards, config: BatchConfig) -> BlockLayout:
    """What a row of a pool is; raises UsageError, which names the `place`, where no dtype tells."""
    sources = shards.sources
    stored = sorted({source.manifest.storage_dtype for source in sources})
    columns = {name: COLUMNS[name] for name in (*config.columns, "positions")}
    widths = tuple(sources[0].manifest.taps[tap] for tap in config.taps)
    return BlockLayout(widths, pool_dtype(config, stored, place), columns, config.sequence)


def _without_first(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The same, but for the first `rows` of the first one."""
    for block in blocks:
        yield block[rows:]
        rows = 0
