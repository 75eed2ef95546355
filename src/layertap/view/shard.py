"""What `inspect` reads of a shard: what is told of its samples, and norm and flags of each token at each tap.

Files are read whole and checked against the manifest, one in memory at a time. Activations are let go of as soon as
their norms are known, so a shard takes its largest file's memory (twice that for pickles). A file that is not what it
should be ends it with the first finding; `verify` is what collects them all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int32

from layertap.core.taps import Site, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import ObjectStore
from layertap.shards.flags import Flags
from layertap.shards.manifest import FILE_NAME, Manifest, ShardEntry, StoredFile, listed_ranges
from layertap.shards.reading import ReadLayer, ReadSample, read_layers, wrong_form
from layertap.shards.statistics import Norms, measure
from layertap.shards.stored import read_stored

OnRead = Callable[[int, int], None]

_ADVICE = "`layertap verify` tells everything that is wrong there"


@dataclass(frozen=True, eq=False)
class SampleSeen:
    """A sample, but for its activations."""

    sample_idx: int
    task_id: str
    text_preview: str
    origin: Mapping[str, Any]
    token_ids: Int32[np.ndarray, " tokens"]


@dataclass(frozen=True, eq=False)
class TapSeen:
    """Norms and flags at one tap, an array for each sample."""

    norms: Sequence[Norms]
    flags: Sequence[Flags]


@dataclass(frozen=True, eq=False)
class ShardSeen:
    """A shard, or one sample of it."""

    manifest: Manifest
    entry: ShardEntry
    samples: Sequence[SampleSeen]
    taps: Mapping[Tap, TapSeen]


def choose_shard(manifest: Manifest, shard: int | None, sample: int | None) -> ShardEntry:
    """The shard with this number, or the one that holds `sample`, or the first; raises UsageError: what there is."""
    if not manifest.shards:
        raise UsageError(f"{FILE_NAME} names no shard; look again when the run has committed one")
    holders = [entry for entry in manifest.shards if sample is not None and _holds(entry, sample)]
    if sample is not None and not holders:
        held = sorted(pair for entry in manifest.shards for pair in entry.sample_idx)
        raise UsageError(f"--sample {sample}: there is none; the shards hold samples {listed_ranges(held)}")
    wanted = shard if shard is not None else (holders or manifest.shards)[0].index
    for entry in holders or manifest.shards:
        if entry.index == wanted:
            return entry
    if holders:
        raise UsageError(f"--shard {shard}: does not hold sample {sample}, which is in shard {holders[0].index}")
    raise UsageError(f"--shard {shard}: there is none; there are shards 1 to {len(manifest.shards)}")


def choose_taps(manifest: Manifest, layers: Iterable[int], sites: Iterable[Site]) -> list[Tap]:
    """Of the stored taps those of these layers and sites, or of all; raises UsageError where one is not stored."""
    wanted_layers, wanted_sites = tuple(layers) or manifest.layers, tuple(sites) or manifest.sites
    for flag, wanted, stored in (("layer", wanted_layers, manifest.layers), ("site", wanted_sites, manifest.sites)):
        missing = [str(one) for one in wanted if one not in stored]
        if missing:
            raise UsageError(f"--{flag} {' '.join(missing)}: not stored here; there are {', '.join(map(str, stored))}")
    return [
        Tap(layer, cast(Site, site))
        for site in manifest.sites
        for layer in manifest.layers
        if site in wanted_sites and layer in wanted_layers
    ]


def see_shard(
    store: ObjectStore,
    manifest: Manifest,
    entry: ShardEntry,
    taps: Sequence[Tap],
    sample: int | None = None,
    on_read: OnRead = lambda _done, _total: None,
) -> ShardSeen:
    """Read the shard at these taps, or one sample of it; `on_read` is told how many of how many bytes are read.

    Raises DamageError where a file is not as the manifest says, or not as docs/formats.md says.
    """
    files = [file for file in entry.files if any(_is_of(file, tap) for tap in taps)]
    total, done = sum(file.bytes for file in files), 0
    samples: list[SampleSeen] = []
    seen: dict[Tap, TapSeen] = {}
    for file in files:
        for layer in _layers(store, manifest, file):
            tap = Tap(layer.layer, layer.site)
            if tap in taps:
                chosen = [one for one in layer.samples if sample in (None, one.sample_idx)]
                seen[tap] = _measured(manifest, layer.name, chosen)
                samples = samples or [_told(one) for one in chosen]
                _require_same(samples, chosen, layer.name)
        done += file.bytes
        on_read(done, total)
    missing = [tap for tap in taps if tap not in seen]
    if missing or not samples:
        what = (
            f"layer {missing[0].layer}, {missing[0].site}" if missing else f"sample {'' if sample is None else sample}"
        )
        raise DamageError(f"shard {entry.index}: its files hold no {what}, which they should; {_ADVICE}")
    return ShardSeen(manifest, entry, samples, {tap: seen[tap] for tap in taps})


def _holds(entry: ShardEntry, sample: int) -> bool:
    return any(first <= sample <= last for first, last in entry.sample_idx)


def _is_of(file: StoredFile, tap: Tap) -> bool:
    return file.kind == "activations" and file.site == tap.site and file.layer in (None, tap.layer)


def _layers(store: ObjectStore, manifest: Manifest, file: StoredFile) -> list[ReadLayer]:
    findings, layers = read_layers(read_stored(store, file), manifest, file)
    if findings:
        raise DamageError(f"{findings[0]}; {_ADVICE}")
    return layers


def _measured(manifest: Manifest, name: str, samples: Sequence[ReadSample]) -> TapSeen:
    for sample in samples:
        finding = wrong_form(manifest, sample)
        if finding:
            raise DamageError(f"{name}: sample {sample.sample_idx}: {finding}; {_ADVICE}")
    norms = [measure(sample.activation, sample.sample_idx)[1] for sample in samples]
    return TapSeen(norms, [sample.flags.copy() for sample in samples])  # a copy, for it may be a view of the file


def _told(sample: ReadSample) -> SampleSeen:
    return SampleSeen(
        sample.sample_idx, sample.task_id, sample.text_preview, sample.origin, np.array(sample.token_ids, np.int32)
    )


def _require_same(samples: Sequence[SampleSeen], others: Sequence[ReadSample], name: str) -> None:
    told, again = ([(one.sample_idx, one.token_ids.tobytes()) for one in each] for each in (samples, others))
    if told != again:
        raise DamageError(f"{name}: holds other samples or tokens than the shard's other layers and sites; {_ADVICE}")
