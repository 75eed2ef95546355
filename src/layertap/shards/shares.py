"""How much of the squared norm of all tokens is in few of them: in sinks, and in the prefix.

Both dominate E||x||^2 as an autoencoder sees it, and an average reconstruction loss. A sink is
found as batches find it: its norm is over ten times the usual norm of its sample (core/columns.py).
The prefix is what all samples begin with: the longest common beginning of their token ids, at
positions 0, 1, 2, ..., over all folders. Values that are not finite do not count.

One shard at a time, norms, offsets and token ids are read: 4 bytes for each token and tap, and 4 to
8 more for each token. Pickles have to be read whole. The prefix only gets shorter from sample to
sample. So it is enough to keep one sum for each place in it, and to cut the sums with the prefix.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from layertap.core.columns import SINK_FACTOR, find_sinks, usual_norms
from layertap.core.taps import Tap
from layertap.objects.base import ObjectStore
from layertap.shards.decode import open_shard
from layertap.shards.manifest import Manifest, ShardEntry
from layertap.shards.shard import Shard

_READERS = 8
_NORM_BYTES = 4


@dataclass(frozen=True)
class Shares:
    """Shares of the squared norm, from 0 to 1."""

    prefix_tokens: int
    """How many tokens the common beginning of all samples has."""
    sinks: Mapping[Tap, float]
    prefix: Mapping[Tap, float]
    prefix_of_rest: Mapping[Tap, float]
    """The prefix's share of the squared norm outside sinks. The first token usually is a sink, and
    would hide what else the prefix holds."""


def norms_are_quick(manifest: Manifest) -> bool:
    """Return whether norms can be read without activations."""
    return manifest.format == "safetensors" and manifest.format_version > 1


def measure_shares(
    runs: Sequence[tuple[ObjectStore, Manifest]], show: Callable[[int, int], None] = lambda done, total: None
) -> Shares:
    """Measure the shares over everything that these runs have committed.

    `show` is called with the bytes of norms that are done, and with their total. Raises DamageError
    where a shard is damaged.
    """
    sums, done = _Sums(), 0
    listed = [(store, manifest, entry) for store, manifest in runs for entry in manifest.shards]
    total = sum(entry.tokens * len(manifest.taps) for _, manifest, entry in listed) * _NORM_BYTES
    for store, manifest, entry in listed:
        sums.add(open_shard(store, manifest, entry), manifest, entry)
        done += entry.tokens * len(manifest.taps) * _NORM_BYTES
        show(done, total)
    return sums.shares()


class _Sums:
    """The sums of squared norms so far."""

    def __init__(self) -> None:
        self._prefix: np.ndarray | None = None
        self._all: defaultdict[Tap, float] = defaultdict(float)
        self._sinks: defaultdict[Tap, float] = defaultdict(float)
        self._places: dict[Tap, np.ndarray] = {}
        """Sums at the samples' places 0, 1, 2, ...: of all, and outside sinks; [2, prefix]."""

    def add(self, content: Shard, manifest: Manifest, entry: ShardEntry) -> None:
        offsets = content.offsets()
        self._shorten(content, offsets, entry.tokens)
        with ThreadPoolExecutor(_READERS if manifest.format == "safetensors" else 1) as pool:
            norms = pool.map(lambda tap: content.norms(tap, 0, entry.tokens), manifest.taps)
            for tap, own in zip(manifest.taps, norms, strict=True):
                self._add_tap(tap, own, offsets)

    def shares(self) -> Shares:
        begun = {tap: self._places[tap].sum(axis=1).tolist() for tap in self._all}
        return Shares(
            0 if self._prefix is None else len(self._prefix),
            {tap: _share(self._sinks[tap], total) for tap, total in self._all.items()},
            {tap: _share(begun[tap][0], total) for tap, total in self._all.items()},
            {tap: _share(begun[tap][1], total - self._sinks[tap]) for tap, total in self._all.items()},
        )

    def _shorten(self, content: Shard, offsets: np.ndarray, tokens: int) -> None:
        """Cut the prefix to what this shard's samples also begin with."""
        if self._prefix is not None and not len(self._prefix):
            return
        ids, positions = content.column("token_ids", 0, tokens), content.positions(0, tokens)
        prefix = ids[: offsets[1]].copy() if self._prefix is None else self._prefix
        length = min(len(prefix), int(np.diff(offsets).min()))
        rows = offsets[:-1, None] + np.arange(length)
        same = ((ids[rows] == prefix[:length]) & (positions[rows] == np.arange(length))).all(axis=0)
        self._prefix = prefix[: length if same.all() else int(np.argmin(same))]

    def _add_tap(self, tap: Tap, norms: np.ndarray, offsets: np.ndarray) -> None:
        squares = np.where(np.isfinite(norms), norms.astype(np.float64) ** 2, 0.0)
        usual = np.repeat(usual_norms(norms, offsets), np.diff(offsets))
        sinks = find_sinks(norms, usual, SINK_FACTOR)
        rows = offsets[:-1, None] + np.arange(0 if self._prefix is None else len(self._prefix))
        places = np.stack([squares[rows].sum(axis=0), np.where(sinks, 0.0, squares)[rows].sum(axis=0)])
        self._all[tap] += float(squares.sum())
        self._sinks[tap] += float(squares[sinks].sum())
        before = self._places.get(tap, np.zeros_like(places))
        self._places[tap] = before[:, : places.shape[1]] + places


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
