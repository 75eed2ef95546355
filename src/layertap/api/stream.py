"""`ActivationStream`: batches to train from while the model runs, without any files.

The arguments, batches and guarantees are those of `ActivationDataset.batches`. Each selected token
comes exactly once per epoch, on one rank. A trainer that was killed resumes with exactly the same
batches, byte for byte. The tokens are those that `layertap extract` would store with the same
settings.

The differences, because a stream cannot see what is still to come:

- Rows are shuffled within a pool of `pool_tokens` consecutive tokens of the run, not over the whole
  dataset. A larger pool shuffles better. `piece_tokens` has no effect.
- Ranks split records, not tokens: rank r of W has every W-th record, from number r. So shares
  differ by more than a token. `drop_last` first counts the rows of all ranks, which reads the
  dataset once, without running the model.
- The normalisation is estimated from the first pool, unless you give `normalisation=`.

On an accelerator, batches for JAX, and for a torch that sees the same card, are made there: the
activations never visit the host (device.py). With several devices they do.

A thread makes a pool while you use the one before, so two pools are in memory beside the model. A
state is the number of the batch and the place in the run where its pool begins, so resuming costs
only making that pool again. A digest of where the pool ends, with all records up to there, proves
that it is the same pool. Each rank has its own state.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from layertap.api.device import stays_on_device
from layertap.api.pools import Place, Pool, RunningModel, count_rows, make_pools
from layertap.config.arguments import Group
from layertap.config.extract import QUANTISED, RunConfig
from layertap.config.keywords import from_keywords, refuse
from layertap.core.columns import COLUMNS
from layertap.core.taps import SITES, Site, Tap
from layertap.dataset import opening_lines
from layertap.errors import RunMismatchError, UsageError
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline import backend
from layertap.pipeline.progress import Progress
from layertap.pipeline.session import Session
from layertap.pipeline.setup import format_of_shards, identity_of, open_run
from layertap.reader.asking import BatchSource
from layertap.reader.blocks import Block, BlockLayout
from layertap.reader.config import BatchConfig, require_same_order
from layertap.reader.handover import Batch, HandOver, pool_dtype
from layertap.reader.measuring import measure_pool
from layertap.reader.sample import describe_taps
from layertap.reader.scaling import Normalisation, same_summary
from layertap.reader.workers import Ahead, Workers
from layertap.shards.manifest import fingerprint_of

_GROUPS: tuple[Group, ...] = ("", "input", "prompt", "model", "tap")
_OF_TOKENS = frozenset({"keep_tokens", "storage_dtype", "on_nonfinite"})
_DO_NOTHING = {
    "certify": "a stream cannot be certified; run `layertap extract` with it",
    "max_tokens_total": "a stream does not stop at a number of tokens; leave the loop instead, or give max_tasks",
}
_STATE_VERSION = 1


class ActivationStream(BatchSource["StreamBatches"]):
    """The activations of a run, from memory.

        stream = layertap.ActivationStream(dataset_path="tasks.jsonl", layers_to_extract=[12])
        for batch in stream.batches(4096, exclude={"first", "sink"}, as_="torch"):
            batch.activations                   # [4096, 1, width]

    The model runs while you train, and nothing is written.
    """

    def __init__(self, **settings: object) -> None:
        """Open a stream. `settings` are the flags of `layertap extract` without dashes.

        Flags of its output are not allowed, except `storage_dtype`, which is the dtype of the
        activations (by default the compute dtype). Config, tokenizer and dataset are checked here;
        the first batch loads the weights. Raises an InputError if a setting is wrong.
        """
        if settings.get("storage_dtype") in QUANTISED:
            raise UsageError(
                f"storage_dtype={settings['storage_dtype']!r} saves bytes on disk, and a stream stores nothing:"
                " leave it out, or give float32, float16 or bfloat16"
            )
        config = from_keywords(RunConfig, settings, _GROUPS, _OF_TOKENS)
        refuse(settings, _DO_NOTHING)
        if config.dataset is None:
            raise UsageError("give dataset_path or dataset_name")
        backend.configure()
        backend.start()
        for line in (*backend.opening_lines(), *opening_lines(config)):
            print(line, file=sys.stderr, flush=True)
        checkpoint = open_checkpoint(config.model_path, config.revision, config.adapter)
        config = _stored_as_computed(config)
        opened, prompts = open_run(config, checkpoint, config.stored_as)
        form = format_of_shards(config, checkpoint.config, opened.taps)
        self.path = f"the stream of {config.dataset}"
        self.model_path = config.model_path
        self._taps = form.taps
        self._dtype = config.stored_as
        self._session = Session()
        self._model = RunningModel(self._session, opened, prompts, form)
        self._identity = identity_of(config, opened, prompts, form)
        self._latest: StreamBatches | None = None
        self._state: Mapping[str, Any] | None = None
        self.close = weakref.finalize(self, self._session.close)
        """End the threads that compile; batches end theirs when they are closed or deleted."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it reads."""
        return tuple(sorted({tap.layer for tap in self._taps}))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that it reads."""
        return tuple(site for site in SITES if any(tap.site == site for tap in self._taps))

    @property
    def taps(self) -> Mapping[Tap, int]:
        """Every (layer, site) that it reads, with its width."""
        return self._taps

    @property
    def progress(self) -> Progress:
        """How many samples and tokens the model has computed.

        `stream.progress.waited` has the seconds spent waiting for weights, prompts and the device.
        """
        return self._model.progress

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the batches made last; raises UsageError if none were made."""
        if self._latest is None:
            raise UsageError("no batches were made from this stream, so it has no state; call batches() first")
        return self._latest.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state into the batches made last, or else into the next ones."""
        if self._latest is None:
            self._state = state
        else:
            self._latest.load_state_dict(state)

    def _make_batches(self, config: BatchConfig) -> "StreamBatches":
        if config.world_size > 1 and config.normalises and config.normalisation is None:
            raise UsageError(
                "each rank would estimate a different normalisation from its own first pool; estimate it once, in a"
                " stream with one rank (stream.batches(...).normalisation), and give it to all with normalisation="
            )
        columns = {name: COLUMNS[name] for name in (*config.columns, "positions")}
        widths = tuple(self._taps[tap] for tap in config.taps)
        layout = BlockLayout(widths, pool_dtype(config, [self._dtype], self.path), columns, config.sequence)
        made = StreamBatches(self._model, config, layout, fingerprint_of(self._identity))
        if self._state is not None:
            made.load_state_dict(self._state)
        self._state, self._latest = None, made
        return made

    def __repr__(self) -> str:
        return (
            f"ActivationStream of {self.path.removeprefix('the stream of ')}\n"
            f"{self.model_path}: {describe_taps(self._taps)}, as {self._dtype}\n"
            f"on {backend.computing_on()}; stream.batches(batch_size) runs the model"
        )


class StreamBatches:
    """The batches of a stream with one configuration; `ActivationStream.batches` makes them.

    Each `for` loop runs to the end of an epoch; the next loop runs through the next epoch. If you
    leave a loop, the next one continues there.
    """

    def __init__(self, model: RunningModel, config: BatchConfig, layout: BlockLayout, run: str) -> None:
        self.taps: tuple[Tap, ...] = config.taps
        """The taps along their axis: the second axis, or with `sequence` the third."""
        stays = stays_on_device(config, model.opened, model.form)
        model = replace(model, opened=replace(model.opened, stays=stays))
        self._all_ranks = model
        self._model = model.of_rank(config.rank, config.world_size)
        self._config = config
        self._layout = layout
        self._run = run
        self._normalisation = config.normalisation
        self._hand_over = HandOver(config, config.normalisation)
        self._epoch = self._batch = 0
        self._iteration = 0
        self._pool: Pool | None = None
        self._begins = Place()
        self._ends: str | None = None
        self._ahead: Ahead[Pool] | None = None
        self._most: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, counted from 0."""
        return self._epoch

    @property
    def normalisation(self) -> Normalisation | None:
        """The map applied to the activations; None if there is none.

        Save it in the trainer's checkpoint; the state has it too. Reading it may make the first
        pool, to estimate it.
        """
        if self._normalisation is None and self._config.normalises:
            self._current()
        return self._normalisation

    def count_batches(self) -> int:
        """Count the batches per epoch on this rank.

        It makes all prompts, but does not run the model. It is not `len`, because Python sometimes
        calls `len` by itself. Raises UsageError if only the model can decide it.
        """
        config = self._config
        if not config.drop_last:
            return -(-count_rows(self._model, config)[0] // config.batch_rows)
        if self._most is None:
            ranks = (self._all_ranks.of_rank(rank, config.world_size) for rank in range(config.world_size))
            self._most = min(count_rows(rank, config)[0] for rank in ranks) // config.batch_rows
        return self._most

    @property
    def left_over(self) -> int:
        """How many tokens of this rank are left out because they do not fill a run of `sequence`.

        It makes all prompts. Raises UsageError if only the model can decide it.
        """
        return count_rows(self._model, self._config)[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch on this rank, as JSON.

        It takes a few hundred bytes; an estimated normalisation adds about 20 per channel.
        """
        number, begins = self._place()
        made = self._normalisation
        return {
            "version": _STATE_VERSION,
            "epoch": self._epoch,
            "batch": self._batch,
            "pool": number,
            "begins": begins.to_json(),
            "ends": self._known_end(),
            "order": self._order(),
            "run": self._run,
            "normalisation": None if made is None else made.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; raises UsageError if its run or settings differ."""
        if state.get("version") != _STATE_VERSION or "begins" not in state:
            raise UsageError(
                "the state is not from a stream, or is from another version of Layertap; start again without it"
            )
        if state["run"] != self._run:
            raise UsageError(
                "the state is from another run: model, taps, prompts or packing differ; start again without it"
            )
        require_same_order(state["order"], self._order())
        self.close()
        self._take_normalisation(state)
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._pool, self._begins = None, Place.from_json(state["begins"])
        self._ends = state.get("ends")
        self._iteration += 1

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        own = self._iteration
        while (rows := self._next_rows()) is not None:
            batch = self._hand_over(rows)
            self._batch += 1
            yield batch
            if own != self._iteration:
                raise UsageError("another loop over these batches has started; continue with that one")
        self.close()
        self._epoch, self._batch, self._pool, self._begins, self._ends = self._epoch + 1, 0, None, Place(), None

    def close(self) -> None:
        """End the thread that runs the model. A later loop continues with the same batch."""
        if self._ahead is not None:
            self._ahead.close()
            self._ends = self._known_end()
            _, self._begins = self._place()
            self._ahead = self._pool = None

    @property
    def _batches_a_pool(self) -> int:
        return self._config.pool_rows // self._config.batch_rows if self._config.shuffle else 1

    def _place(self) -> tuple[int, Place]:
        """Return the number of the next batch's pool, and where that pool begins."""
        number = self._batch // self._batches_a_pool
        if self._pool is None:
            return number, self._begins
        return number, self._pool.begins if number == self._pool.number else self._pool.ends

    def _known_end(self) -> str | None:
        """Return a digest of where the next batch's pool ends, with all records up to there.

        None if that pool was not made yet.
        """
        if self._pool is None:
            return self._ends
        number, _ = self._place()
        return fingerprint_of(self._pool.ends.to_json()) if number == self._pool.number else None

    def _require_same_end(self, pool: Pool | None) -> None:
        """Refuse a pool that differs from the one in the state."""
        if self._pool is None and self._ends is not None:
            made = None if pool is None else fingerprint_of(pool.ends.to_json())
            if made != self._ends:
                raise RunMismatchError(
                    "the dataset differs from the one of the state, so the batches would differ; give the same"
                    " dataset, or start again without the state"
                )

    def _next_rows(self) -> Block | None:
        """Return the rows of the next batch; None at the end of the epoch."""
        config = self._config
        if config.drop_last and config.world_size > 1 and self._batch >= self.count_batches():
            return None
        pool = self._current()
        if pool is None:
            return None
        begin = self._batch % self._batches_a_pool * config.batch_rows
        rows = pool.block[begin : begin + config.batch_rows]
        return None if not len(rows) or (config.drop_last and len(rows) < config.batch_rows) else rows

    def _current(self) -> Pool | None:
        """Return the pool of the next batch; None after the last one."""
        number, begins = self._place()
        if self._pool is not None and self._pool.number == number:
            return self._pool
        if self._ahead is None:
            stop = Workers(0, "stop-stream")
            made = make_pools(self._model, self._config, self._layout, self._epoch, number, begins, stop)
            self._ahead = Ahead(made, [stop], "make-pools")
        with ExitStack() as undo:
            undo.callback(self.close)  # after an error or Ctrl-C, a later loop makes this pool again
            pool = next(self._ahead, None)
            self._require_same_end(pool)
            if pool is not None:
                self._estimate(pool)
                self._pool = pool
            undo.pop_all()
        return pool

    def _estimate(self, pool: Pool) -> None:
        """Estimate the normalisation from the first pool."""
        config = self._config
        if self._normalisation is None and config.normalises:
            statistics = measure_pool(pool.block, config)
            measured = f"the first {len(pool.block) * config.tokens_a_row} tokens of the stream"
            self._set_normalisation(Normalisation.of(statistics, config.center, config.scale, measured))

    def _take_normalisation(self, state: Mapping[str, Any]) -> None:
        """Use the normalisation of a state; raises UsageError if another one is requested."""
        told, config, given = state["normalisation"], self._config, self._config.normalisation
        made = None if told is None else Normalisation.from_state_dict(told)
        if made is None:  # nothing was normalised, or nothing was measured yet
            same = given is None and not (config.normalises and (state["epoch"] or state["batch"]))
        elif given is None:
            same = config.normalises and (config.center, config.scale) == (made.center, made.scale)
        else:
            same = same_summary(made.summary(), given.summary())
        if not same:
            raise UsageError(
                "the state is from activations with another normalisation, which are different data to an autoencoder;"
                " give the normalisation= of your checkpoint"
            )
        if made is not None and given is None:
            self._set_normalisation(made)

    def _set_normalisation(self, made: Normalisation) -> None:
        self._normalisation, self._hand_over = made, HandOver(self._config, made)

    def _order(self) -> dict[str, Any]:
        """Return all settings that decide the order of tokens on this rank."""
        return self._config.order() | {"rank": self._config.rank}


def _stored_as_computed(config: RunConfig) -> RunConfig:
    """Return the settings with the dtype of the activations that a stream returns."""
    return replace(config, format="safetensors", storage_dtype=config.storage_dtype or config.compute_dtype)
