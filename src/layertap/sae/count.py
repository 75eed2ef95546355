"""One walk over a run that finds of each feature how often, how much, on what and where most.

Shards come one after the other, and of each its labels, then its activations, a step at a time. A
step is as many tokens as make some ten million values of features, so memory is bounded by that,
by the labels of a shard (of pickles by a whole one) and by the table, whatever the run's size.

A step ends where its shard does, so what is found of a shard does not depend on those before it.
While the host sorts the values of one step, the device computes the next.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.choice import kept
from layertap.reader.config import BatchConfig, Flag
from layertap.reader.dataset import ActivationDataset
from layertap.reader.pieces import ShardTokens
from layertap.sae.answers import GROUPS, Answers, answer, label_columns, no_answers
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.table import FeatureTable
from layertap.sae.tally import Piece, Tally
from layertap.shards.shard import Shard

_VALUES = 1 << 23
"""Values of features in a step, 4 bytes each; there are some four such arrays at a time."""
_FEWEST, _MOST = 64, 4096
"""Tokens of a step."""

EXCLUDED: frozenset[Flag] = frozenset({"first", "sink"})
"""Tokens whose size says more about the model's sinks than about any feature."""


@dataclass(frozen=True, eq=False)
class Step:
    """Some tokens of a shard that are counted."""

    activations: np.ndarray
    """[tokens, width] in the storage dtype."""
    answers: Answers
    pieces: tuple[Piece, ...]
    rows: np.ndarray
    """Where each token is among its sample's activations."""


def count_features(
    dataset: ActivationDataset,
    autoencoder: Autoencoder,
    tap: Tap,
    *,
    exclude: Collection[Flag] = EXCLUDED,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureTable:
    """All features over all samples; tokens that are not finite are never counted.

    `show` is called with how many tokens of how many are done. Raises UsageError where the tap is
    not there or is not as wide as the autoencoder, DamageError where a shard is not right.
    """
    _require_tap(dataset, autoencoder, tap)
    config = BatchConfig(batch_size=1, taps=(tap,), exclude=frozenset({*exclude, "nonfinite"}))
    tally, done = Tally(autoencoder.features), 0
    counter = _Counter(autoencoder, tally)
    show(0, dataset.tokens)
    for shard, (_, entry) in enumerate(dataset.shards):
        content, first = dataset.shards.content(shard), dataset.shards.first_samples[shard]
        for step in _steps(content, entry.tokens, config, first, counter.most):
            counter.add(step)
        counter.finish()
        tally.samples += entry.samples
        done += entry.tokens
        show(done, dataset.tokens)
    return tally.table(tap)


def _require_tap(dataset: ActivationDataset, autoencoder: Autoencoder, tap: Tap) -> None:
    width = dataset.width(*tap)
    if width != autoencoder.width:
        raise UsageError(
            f"{dataset.path}: layer {tap.layer} at {tap.site} is {width} wide; the autoencoder takes activations of"
            f" width {autoencoder.width}"
        )


class _Counter:
    """Has the device count a step while the host sorts what it found of the step before."""

    def __init__(self, autoencoder: Autoencoder, tally: Tally) -> None:
        # These bring JAX with them, which only counting needs.
        from layertap.pipeline import backend
        from layertap.sae.encoder import StepFound, make_step

        backend.configure()
        backend.start()

        self.most = min(max(_VALUES // autoencoder.features // _FEWEST * _FEWEST, _FEWEST), _MOST)
        self._tally = tally
        self._count = make_step(autoencoder, [len(group.values) for group in GROUPS])
        self._open: tuple[Step, StepFound] | None = None

    def add(self, step: Step) -> None:
        """Count a step; it is in the tally after the next one, or after `finish`."""
        tokens = len(step.rows)
        padded = _padded(tokens, self.most)
        activations = np.zeros((padded, step.activations.shape[1]), step.activations.dtype)
        activations[:tokens] = step.activations
        answers = np.pad(step.answers, ((0, 0), (0, padded - tokens)), constant_values=-1)
        found = self._count(activations, answers, (np.arange(padded) < tokens).astype(np.float32))
        self.finish()
        self._open = step, found

    def finish(self) -> None:
        """Wait for the step that is open."""
        if self._open is None:
            return
        (step, found), self._open = self._open, None
        self._tally.add_counts(np.asarray(found.sums), np.asarray(found.active), step.answers)
        self._tally.add_values(np.asarray(found.features)[: len(step.rows)], step.pieces, step.rows)


def _padded(tokens: int, most: int) -> int:
    """How many rows a step of so many tokens has: few numbers, each of which is compiled once."""
    rows = _FEWEST
    while rows < tokens:
        rows *= 4
    return min(rows, most)


def _steps(content: Shard, tokens: int, config: BatchConfig, first: int, most: int) -> Iterator[Step]:
    """The tokens of a shard that are counted, at most so many at a time."""
    offsets, (tap,) = content.offsets(), config.taps
    chosen = np.flatnonzero(kept(ShardTokens(content, 0, tokens), config, tokens))
    answers = _answers(content, offsets)
    for begin in range(0, len(chosen), most):
        rows = chosen[begin : begin + most]
        activations = content.activations(tap, int(rows[0]), int(rows[-1]) + 1)[rows - rows[0]]
        samples = np.searchsorted(offsets, rows, side="right") - 1
        bounds = [*np.flatnonzero(np.diff(samples, prepend=-1)).tolist(), len(rows)]
        pieces = tuple(Piece(first + int(samples[start]), start, end) for start, end in pairwise(bounds))
        yield Step(activations, answers[:, rows], pieces, rows - offsets[samples])


def _answers(content: Shard, offsets: np.ndarray) -> Answers:
    """The answers of all tokens of a shard; none where the run stored no labels."""
    total = int(offsets[-1])
    try:
        columns = {name: content.column(name, 0, total) for name in label_columns()}
    except UsageError:
        return no_answers(total)
    parts = [
        answer({name: values[begin:end] for name, values in columns.items()})
        for begin, end in pairwise(offsets.tolist())
    ]
    return np.concatenate(parts, axis=1) if parts else no_answers(0)
