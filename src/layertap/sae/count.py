"""Walk over a run once and find how often, how much, on what and where most each feature fires.

The tokens of a step give about eight million values of features. So memory is bounded by that, by
the labels of a shard (for pickles, by a whole shard) and by the table, whatever the run's size.
While the host sorts the values of one step, the device computes the next, and a thread reads the
step after it.

Counts are kept beside the shards (kept.py). JAX is imported only if something is left to count.
"""

import sys
from collections.abc import Callable, Collection
from contextlib import closing

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.objects import open_store
from layertap.reader.config import BatchConfig, Flag
from layertap.reader.dataset import ActivationDataset
from layertap.reader.workers import Ahead
from layertap.sae.answers import GROUPS
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.kept import KeptTally, key_of
from layertap.sae.steps import Step, take_steps
from layertap.sae.table import FeatureTable
from layertap.sae.tally import Tally

_VALUES = 1 << 23
"""Values of features in a step, 4 bytes each; about four such arrays exist at a time."""
_FEWEST, _MOST = 64, 4096
"""Tokens of a step."""

EXCLUDED: frozenset[Flag] = frozenset({"first", "sink"})
"""Tokens whose size says more about the model's sinks than about any feature."""


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def count_features(
    dataset: ActivationDataset,
    autoencoder: Autoencoder,
    tap: Tap,
    *,
    exclude: Collection[Flag] = EXCLUDED,
    show: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = _print,
) -> FeatureTable:
    """Count all features over all samples; tokens that are not finite are never counted.

    Earlier counts are read from `features/` beside the shards, and new counts are kept there.
    `show` gets the number of tokens that are done, and of all tokens. `say` gets a message if
    counts cannot be kept, or if the kept file is corrupt. Raises UsageError if the tap is missing
    or is not as wide as the autoencoder, DamageError if a shard is damaged.
    """
    _require_tap(dataset, autoencoder, tap)
    config = BatchConfig(batch_size=1, taps=(tap,), exclude=frozenset({*exclude, "nonfinite"}))
    most = _most_tokens(autoencoder.features)
    with closing(open_store(dataset.path)) as store:
        kept = KeptTally(store, key_of(autoencoder, config, most), dataset.shards, say)
        tally = kept.load(autoencoder.features)
        if tally.place.shards < len(dataset.shards):
            show(sum(dataset.shards.tokens[: tally.place.shards]), dataset.tokens)
            steps = Ahead(take_steps(dataset.shards, config, tally.place, most), [], "read-features")
            with closing(steps):
                counter = _Counter(autoencoder, tally, most)
                for step in steps:
                    counter.add(step)
                    kept.keep_now_and_then(tally)
                    show(step.done, dataset.tokens)
                counter.finish()
            kept.keep(tally)
    return tally.table(tap)


def _require_tap(dataset: ActivationDataset, autoencoder: Autoencoder, tap: Tap) -> None:
    width = dataset.width(*tap)
    if width != autoencoder.width:
        raise UsageError(
            f"{dataset.path}: layer {tap.layer} at {tap.site} is {width} wide; the autoencoder takes activations of"
            f" width {autoencoder.width}"
        )


def _most_tokens(features: int) -> int:
    """Return the number of tokens of a step."""
    return min(max(_VALUES // features // _FEWEST * _FEWEST, _FEWEST), _MOST)


class _Counter:
    """It lets the device count a step while the host sorts the results of the step before."""

    def __init__(self, autoencoder: Autoencoder, tally: Tally, most: int) -> None:
        # These import JAX, which only counting needs.
        from layertap.pipeline import backend
        from layertap.sae.encoder import StepFound, make_step

        backend.configure()
        backend.start()
        self._most = most
        self._tally = tally
        self._count = make_step(autoencoder, [len(group.values) for group in GROUPS])
        self._open: tuple[Step, StepFound | None] | None = None

    def add(self, step: Step) -> None:
        """Count a step; it is in the tally after the next one, or after `finish`."""
        tokens, found = len(step.rows), None
        if tokens:
            padded = _padded(tokens, self._most)
            activations = np.zeros((padded, step.activations.shape[1]), step.activations.dtype)
            activations[:tokens] = step.activations
            answers = np.pad(step.answers, ((0, 0), (0, padded - tokens)), constant_values=-1)
            found = self._count(activations, answers, (np.arange(padded) < tokens).astype(np.float32))
        self.finish()
        self._open = step, found

    def finish(self) -> None:
        """Wait for the last step."""
        if self._open is None:
            return
        (step, found), self._open = self._open, None
        if found is not None:
            self._tally.add_counts(np.asarray(found.sums), np.asarray(found.active), step.answers)
            self._tally.add_values(np.asarray(found.features)[: len(step.rows)], step.pieces, step.rows)
        self._tally.samples += step.samples
        self._tally.place = step.place


def _padded(tokens: int, most: int) -> int:
    """Return the rows of a step with so many tokens. There are few sizes: each compiles once."""
    rows = _FEWEST
    while rows < tokens:
        rows *= 4
    return min(rows, most)
