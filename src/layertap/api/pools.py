"""Pools of rows directly from a running model: the parts of a stream.

Samples come in the order in which a run would store them (pipeline/stream.py), and their rows fill
one pool after another. Each pool is shuffled row by row with the seed, epoch, rank and number of
the pool. So a pool depends only on the run, the settings and the place where it begins: the
position before a sample of the run, and how many rows of that sample are in the pool before. A
stream that starts at such a place makes the same pools, byte for byte.

One pool is made while the one before is used. You may leave at any moment, even when Python exits:
the maker ends within one step of the device.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from layertap.api.device import DeviceBlock, measure_norms
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.pipeline.inputs import Prompts
from layertap.pipeline.progress import Progress
from layertap.pipeline.session import OpenedModel, Session
from layertap.pipeline.staying import DeviceTokens
from layertap.pipeline.stream import stream_samples
from layertap.pipeline.windows import Position
from layertap.reader.blocks import Block, BlockLayout, shuffled_places
from layertap.reader.choice import SampleTokens, choose_tokens, cut_runs
from layertap.reader.config import BatchConfig
from layertap.reader.pieces import Rows
from layertap.reader.workers import Workers
from layertap.shards.form import ShardFormat
from layertap.shards.rounding import measure_sample


@dataclass(frozen=True)
class Place:
    """Where a pool begins."""

    position: Position = field(default_factory=Position)
    """The position in the run before the sample of its first row."""
    rows: int = 0
    """How many rows of that sample are in earlier pools."""
    samples: int = 0
    """How many samples with a stored token come before that sample."""

    def to_json(self) -> dict[str, Any]:
        """Return the place as JSON, for a state."""
        return {"position": self.position.to_json(), "rows": self.rows, "samples": self.samples}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Place":
        """Read what `to_json` wrote; raises DamageError or UsageError if it is damaged."""
        try:
            return cls(Position.from_json(raw["position"]), int(raw["rows"]), int(raw["samples"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the state of the stream is damaged: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows in the order of the batches."""

    number: int
    """The number of the pool in its epoch, from 0."""
    block: Block
    begins: Place
    ends: Place
    """Where the next pool begins."""


@dataclass(frozen=True, eq=False)
class RunningModel:
    """A model, its inputs, and the rounding of its activations."""

    session: Session
    opened: OpenedModel
    prompts: Prompts
    form: ShardFormat
    """The form in which a run would store the activations."""
    progress: Progress = field(default_factory=Progress)
    """What was computed so far, in all epochs, and the time spent waiting."""

    def samples(self, start: Position, proceed: Callable[[], None]) -> Iterator[tuple[Position, Sample]]:
        """Yield the samples from `start`, each with the position after it; raises what runs
        raise.
        """
        windows = self.prompts.windows(start)
        return stream_samples(
            self.session, self.opened, self.prompts.rules, windows, self.progress, proceed, self.prompts.kept
        )

    def of_rank(self, rank: int, world_size: int) -> "RunningModel":
        """Return the same model for the records of one rank: every `world_size`-th."""
        rules = replace(self.prompts.rules, machine_id=rank, total_machines=world_size)
        return replace(self, prompts=replace(self.prompts, rules=rules))


def make_pools(
    model: RunningModel, config: BatchConfig, layout: BlockLayout, epoch: int, number: int, start: Place, stop: Workers
) -> Iterator[Pool]:
    """Yield the pools of an epoch from pool `number`, which begins at `start`.

    Raises CancelledError when `stop` is dismissed, and what a run raises.
    """
    size = config.pool_rows if config.shuffle else config.batch_rows
    begins, filled = start, 0
    make_room = partial(DeviceBlock.make_room, layout) if model.opened.stays else layout.make_room
    pool, places = make_room(size), _places(config, epoch, number, size)
    place = start
    for place, rows in _placed_rows(model, config, start, stop):
        taken = 0
        while taken < len(rows):
            part = rows[taken : taken + size - filled]
            assert isinstance(part, Rows)  # not empty, so they are rows of a sample
            pool.put(places[filled : filled + len(part)], part)
            taken, filled = taken + len(part), filled + len(part)
            if filled == size:
                ends = replace(place, rows=place.rows + taken)
                yield Pool(number, pool, begins, ends)
                begins, filled, number = ends, 0, number + 1
                pool, places = make_room(size), _places(config, epoch, number, size)
    if filled:
        yield Pool(number, pool[np.sort(places[:filled])], begins, place)


def _places(config: BatchConfig, epoch: int, number: int, size: int) -> np.ndarray:
    return shuffled_places(config, epoch, number, size) if config.shuffle else np.arange(size)


def _placed_rows(
    model: RunningModel, config: BatchConfig, start: Place, stop: Workers
) -> Iterator[tuple[Place, Rows | tuple[()]]]:
    """Yield the rows of each sample from `start`, with the place of the first row.

    The last item has no rows and the place at the end.
    """
    position, skip, number = start.position, start.rows, start.samples
    stream = model.samples(position, partial(_refuse_to_go_on, stop))
    with closing(stream):  # type: ignore[type-var]  # it is a generator
        for behind, sample in stream:
            if sample.tokens:
                rows = choose_rows(sample, model.form, config, number)
                yield Place(position, skip, number), rows[skip:]
                skip, number = 0, number + 1
            position = behind
    yield Place(position, skip, number), ()


def _refuse_to_go_on(stop: Workers) -> None:
    if stop.dismissed:
        raise CancelledError


def choose_rows(sample: Sample, form: ShardFormat, config: BatchConfig, number: int) -> Rows:
    """Return the selected rows of a sample, which is number `number` among all samples.

    Raises StorageError for a NaN or an infinity, unless they are kept, or if float16 makes one.
    """
    values, norms = _values(sample, form, config)
    tokens = SampleTokens(sample.columns, norms)
    columns = {name: sample.columns[name] for name in (*config.columns, "positions")}
    read = Rows(values, columns, np.full(sample.tokens, number))
    if not config.leaves_out and config.sequence is None:
        return read
    chosen = choose_tokens(tokens, config, sample.tokens)
    if config.sequence is None:
        return read[np.flatnonzero(chosen)]
    runs = _runs(chosen, sample, config.sequence)
    in_runs = read[runs]
    return Rows(in_runs.activations, in_runs.columns, np.full(len(runs), number))


def _values(sample: Sample, form: ShardFormat, config: BatchConfig) -> tuple[list[Any], dict[Tap, np.ndarray]]:
    """Return a sample's activations at each tap, rounded as if stored, and their norms."""
    if isinstance(sample.activations[config.taps[0]], DeviceTokens):
        return [sample.activations[tap] for tap in config.taps], measure_norms(sample, form, config.taps)
    measured = {tap: measure_sample(sample, tap, form) for tap in config.taps}
    return [rounded for rounded, _, _ in measured.values()], {tap: norms for tap, (_, norms, _) in measured.items()}


def count_rows(model: RunningModel, config: BatchConfig) -> tuple[int, int]:
    """Count this rank's rows per epoch, and the tokens left out because they fill no run.

    It makes all prompts of the rank, but does not run the model. Raises UsageError if only
    activations decide which tokens are selected.
    """
    if config.exclude & {"sink", "nonfinite"}:
        raise UsageError(
            "a stream cannot count its tokens before it has run, because sinks and non-finite values show only in"
            " activations; leave out count_batches, left_over and drop_last, or exclude=, or store the run and train"
            " from that"
        )
    rows = tokens = 0
    for window in model.prompts.windows():
        for whole in window.samples:
            sample = model.prompts.kept.of(whole)
            chosen = choose_tokens(SampleTokens(sample.columns, {}), config, sample.tokens)
            tokens += int(chosen.sum())
            rows += len(_runs(chosen, sample, config.sequence)) if config.sequence else int(chosen.sum())
    return rows, tokens - rows * config.tokens_a_row


def _runs(chosen: np.ndarray, sample: Sample, sequence: int) -> np.ndarray:
    return cut_runs(chosen, np.zeros(sample.tokens, np.int64), sample.columns["positions"], sequence)
