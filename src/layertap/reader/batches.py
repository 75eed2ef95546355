"""Batches of tokens to train from: seeded, split between ranks, and resumable.

Each selected token (included, and not excluded) comes exactly once per epoch, on one rank.
pieces.py explains pieces and the shares of ranks; blocks.py explains the shuffling. A thread fills
the next pool while you use the current one, so two pools are in memory, plus the pieces that are
being read.

You may leave an iterator at any batch and in any way, even when Python exits (workers.py). Reading
then stops after the pieces that are being read. So the generators here have no cleanup code: a
generator that is destroyed late at exit would find modules that are already empty.

A position is two numbers: the epoch, and how many of its batches were returned. The configuration
and the manifests (and the columns, if tokens are selected) decide the rest. So a state is small, is
valid for every rank, and stays valid when the dataset is moved. After a resume, the batches are the
same, byte for byte.
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
    """The batches of a dataset with one configuration; `ActivationDataset.batches` makes them.

    Each `for` loop runs to the end of an epoch; the next loop runs through the next epoch. `len` is
    the number of batches per epoch on this rank.
    """

    def __init__(
        self, shards: Shards, layout: BlockLayout, config: BatchConfig, normalisation: Normalisation | None
    ) -> None:
        self.taps: tuple[Tap, ...] = config.taps
        """The taps along their axis: the second axis, or with `sequence` the third."""
        self.normalisation: Normalisation | None = normalisation
        """The map that was applied to the activations; None if there is none. Save it in the
        trainer's checkpoint."""
        self._hand_over = HandOver(config, normalisation)
        self._shards = shards
        self._config = config
        self._layout = layout
        self._pieces = Pieces(shards, config)
        self._epoch = self._batch = 0
        self._iteration = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, counted from 0."""
        return self._epoch

    @property
    def left_over(self) -> int:
        """How many tokens of all ranks are left out because they do not fill a run of `sequence`.

        These are the ends of samples, and tokens between excluded ones. Reads the columns that
        decide it.
        """
        return self._pieces.left_over

    def close(self) -> None:
        """Do nothing. It exists because the batches of a stream have it too."""

    def __len__(self) -> int:
        config, rows = self._config, int(self._pieces.counts.sum())
        if config.drop_last:
            return rows // (config.world_size * config.batch_rows)
        begin, end = rank_share(rows, config.rank, config.world_size)
        return -(-(end - begin) // config.batch_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch, as JSON.

        All ranks that have returned equally many batches have the same state.
        """
        position = {"version": _STATE_VERSION, "epoch": self._epoch, "batch": self._batch}
        told = {} if self.normalisation is None else {"normalisation": self.normalisation.summary()}
        return position | {"order": self._config.order(), "dataset": self._shards.digest} | told

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; raises UsageError if its dataset or configuration differs."""
        if state.get("version") != _STATE_VERSION:
            raise UsageError(
                f"the state has version {state.get('version')}; this Layertap reads version {_STATE_VERSION}"
            )
        if state["dataset"] != self._shards.digest:
            raise UsageError(
                "the state is from another dataset, or from this one with other shards; start again without it"
            )
        require_same_order(state["order"], self._config.order())
        made = state.get("normalisation")
        own = None if self.normalisation is None else self.normalisation.summary()
        if not same_summary(made, own):
            raise UsageError(
                "the state is from activations with another normalisation, which are different data to an autoencoder;"
                " give"
                f" the normalisation= of your checkpoint:\n  {made} there\n  {own} now"
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
                raise UsageError("another loop over these batches has started; continue with that one")
        self._epoch, self._batch = self._epoch + 1, 0

    def _rows(self) -> Iterator[Block]:
        """Yield the rest of the epoch, one batch at a time."""
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
        """Return the blocks from that batch; each is made while the one before is used."""
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
        """Return this rank's share of an epoch, without its first `done` rows."""
        config, pieces = self._config, self._pieces
        order = pieces.order(epoch)
        if config.world_size == 1 and not done:  # without reading flags
            return Share(order, Cursor(0, 0), sum(self._shards.tokens) // config.tokens_a_row)
        rows = int(pieces.counts.sum())
        begin, end = rank_share(rows, config.rank, config.world_size)
        last = pieces.locate(order, end)
        own = order[: last.piece + (last.row > 0)]  # pieces after it are not read ahead
        return Share(own, pieces.locate(order, begin + done), max(0, end - begin - done))


def make_layout(place: str, shards: Shards, config: BatchConfig) -> BlockLayout:
    """Define a row of a pool; raises UsageError, which names `place`, if the dtype is ambiguous."""
    sources = shards.sources
    stored = sorted({source.manifest.read_as for source in sources})
    columns = {name: COLUMNS[name] for name in (*config.columns, "positions")}
    widths = tuple(sources[0].manifest.taps[tap] for tap in config.taps)
    return BlockLayout(widths, pool_dtype(config, stored, place), columns, config.sequence)


def _without_first(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Yield the blocks without the first `rows` rows of the first one."""
    for block in blocks:
        yield block[rows:]
        rows = 0
