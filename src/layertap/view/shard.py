"""What `inspect` reads from a shard: facts about its samples, and each token's norms and flags.

It reads the stored norms, and no activation of safetensors; it reads pickles whole. It stops at the
first damage that it finds; `verify` collects all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from layertap.core.columns import NO_LABELS, SINK, Columns, Norms
from layertap.core.taps import Site, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import ObjectStore
from layertap.shards.decode import open_shard
from layertap.shards.manifest import FILE_NAME, Manifest, ShardEntry, join_ranges, listed_ranges
from layertap.shards.shard import Shard, Words

OnRead = Callable[[int, int], None]

MOST_RANGES = 8  # ranges of sample numbers in a line
_ADVICE = "`layertap verify` lists everything that is wrong there"


@dataclass(frozen=True, eq=False)
class SampleSeen:
    """A sample without its activations."""

    sample_idx: int
    words: Words
    token_ids: Int32[np.ndarray, " tokens"]
    positions: Int32[np.ndarray, " tokens"]
    labels: Columns
    """The label columns; empty where the run stored none."""


@dataclass(frozen=True, eq=False)
class TapSeen:
    """Norms and flags at one tap, with one array for each sample."""

    norms: Sequence[Norms]
    flags: Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class ShardSeen:
    """A shard, or one sample of it."""

    manifest: Manifest
    entry: ShardEntry
    samples: Sequence[SampleSeen]
    taps: Mapping[Tap, TapSeen]


def choose_shard(manifest: Manifest, shard: int | None, sample: int | None) -> ShardEntry:
    """Return the shard with this number, or the one that holds `sample`, or the first.

    Raises UsageError, and lists what there is, where no shard fits.
    """
    if not manifest.shards:
        raise UsageError(f"{FILE_NAME} names no shard; look again when the run has committed one")
    holders = [entry for entry in manifest.shards if sample is not None and _holds(entry, sample)]
    if sample is not None and not holders:
        held = join_ranges(pair for entry in manifest.shards for pair in entry.sample_idx)
        listed = listed_ranges(held, MOST_RANGES)
        raise UsageError(f"--sample {sample}: there is none; the shards hold samples {listed}")
    wanted = shard if shard is not None else (holders or manifest.shards)[0].index
    for entry in holders or manifest.shards:
        if entry.index == wanted:
            return entry
    if holders:
        raise UsageError(f"--shard {shard}: does not hold sample {sample}, which is in shard {holders[0].index}")
    raise UsageError(f"--shard {shard}: there is none; there are shards 1 to {len(manifest.shards)}")


def find_sample(store: ObjectStore, manifest: Manifest, named: str) -> int:
    """Return the number of the sample with this number, or the first sample of this task.

    To find a task, this reads the shards in order. Raises UsageError where there is none.
    """
    if named.isdecimal():
        return int(named)
    for entry in manifest.shards:
        shard = open_shard(store, manifest, entry)
        numbers, words = shard.sample_idx().tolist(), shard.words()
        own = [number for number, told in zip(numbers, words, strict=True) if told.task_id == named]
        if own:
            return int(min(own))
    raise UsageError(f"--sample {named}: no sample is of this task; give a sample_idx, or a task as `inspect` lists it")


def choose_taps(manifest: Manifest, layers: Iterable[int], sites: Iterable[Site]) -> list[Tap]:
    """Return the stored taps of these layers and sites; no layer or no site means all.

    Raises UsageError where one is not stored.
    """
    wanted_layers, wanted_sites = tuple(layers) or manifest.layers, tuple(sites) or manifest.sites
    for flag, wanted, stored in (("layer", wanted_layers, manifest.layers), ("site", wanted_sites, manifest.sites)):
        missing = [str(one) for one in wanted if one not in stored]
        if missing:
            raise UsageError(f"--{flag} {' '.join(missing)}: not stored here; there are {', '.join(map(str, stored))}")
    return [tap for tap in manifest.taps if tap.site in wanted_sites and tap.layer in wanted_layers]


def see_shard(
    store: ObjectStore,
    manifest: Manifest,
    entry: ShardEntry,
    taps: Sequence[Tap],
    sample: int | None,
    on_read: OnRead = lambda _done, _total: None,
) -> ShardSeen:
    """Read a shard at `taps`, or only its `sample`.

    `on_read` is called with the bytes that are read, and with about how many there are. Raises
    DamageError where a file is damaged.
    """
    shard = open_shard(store, manifest, entry)
    try:
        offsets, numbers = shard.offsets(taps[0]).tolist(), shard.sample_idx(taps[0]).tolist()
        chosen = [place for place, number in enumerate(numbers) if sample in (None, number)]
        if not chosen:
            raise DamageError(f"shard {entry.index}: its files do not hold sample {sample}, which they should")
        spans = {place: (offsets[place], offsets[place + 1]) for place in chosen}
        words = shard.words(taps[0])
        samples = [
            SampleSeen(
                numbers[place],
                words[place],
                np.array(shard.column("token_ids", *span, taps[0]), np.int32),
                np.array(shard.column("positions", *span, taps[0]), np.int32),
                {name: shard.column(name, *span, taps[0]).copy() for name in NO_LABELS if name in manifest.columns},
            )
            for place, span in spans.items()
        ]
        size = sum(file.bytes for file in entry.files if file.kind == "activations")
        seen = {}
        for read, tap in enumerate(taps, 1):
            seen[tap] = _see_tap(shard, tap, list(spans.values()))
            on_read(size * read // len(taps), size)
    except DamageError as error:
        raise DamageError(f"{error}; {_ADVICE}") from error
    return ShardSeen(manifest, entry, samples, seen)


def _holds(entry: ShardEntry, sample: int) -> bool:
    return any(first <= sample <= last for first, last in entry.sample_idx)


def _see_tap(shard: Shard, tap: Tap, spans: Sequence[tuple[int, int]]) -> TapSeen:
    flags = [
        shard.column("flags", *span, tap) | np.where(shard.sinks(tap, *span), np.uint8(SINK), np.uint8(0))
        for span in spans
    ]
    return TapSeen([shard.norms(tap, *span).copy() for span in spans], flags)
