"""Shards to disk, each committed once.

The order of a commit, for a shard that is closed: its files, each written under a temporary name, synced and renamed;
then the manifest that names them; then `after_commit` (the run's checkpoint). Killed between any two of these, the
restart finds the manifest of the commit before, and writes the same shard again over whatever lies there.

A shard is one file a site (pickle), or one file a layer and site (safetensors), and one with its statistics. It is
closed before its activations, uncompressed and in the storage dtype, would exceed `shard_bytes`; a single sample larger
than that gets a shard of its own. So the shards' boundaries depend on the samples and the settings alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from layertap.core.taps import Site, Tap
from layertap.objects.files import Checksummed, atomic_write
from layertap.shards.flags import Flags, shard_flags
from layertap.shards.manifest import Json, Manifest, ShardEntry, StoredFile, index_ranges, write_manifest
from layertap.shards.pickles import write_pickle
from layertap.shards.safetensors import write_safetensors
from layertap.shards.samples import StoredSample, round_all
from layertap.shards.statistics import TapStatistics, measure_shard
from layertap.shards.statistics_files import KIND, write_statistics


@dataclass(frozen=True)
class ShardFormat:
    """How shards are written."""

    layers: tuple[int, ...]
    sites: tuple[Site, ...]
    hidden_size: int
    dtype: np.dtype
    compress: bool
    """Whether pickles are gzipped; safetensors never are."""
    name: Literal["pickle", "safetensors"] = "pickle"

    @property
    def bytes_per_token(self) -> int:
        """Bytes of activations that a token brings, before compression."""
        return len(self.layers) * len(self.sites) * self.hidden_size * self.dtype.itemsize

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Every (layer, site)."""
        return tuple(Tap(layer, site) for site in self.sites for layer in self.layers)

    def files(self, index: int) -> tuple["PlannedFile", ...]:
        """The files of shard `index`, counted from 1."""
        if self.name == "safetensors":
            return tuple(
                PlannedFile(f"{tap.site}/layer_{tap.layer:02d}/shard_{index:04d}.safetensors", tap.site, tap.layer)
                for tap in self.taps
            )
        name = f"shard_{index:04d}.pkl" + (".gz" if self.compress else "")
        return tuple(PlannedFile(name if len(self.sites) == 1 else f"{site}/{name}", site) for site in self.sites)


@dataclass(frozen=True)
class PlannedFile:
    """A file of a shard: its path below the output folder, and the tap it holds (layer None: all layers)."""

    path: str
    site: Site
    layer: int | None = None


class ShardBuffer:
    """Collects samples until the next one would make the shard too large."""

    def __init__(self, shard_format: ShardFormat, shard_bytes: int) -> None:
        self._bytes_per_token = shard_format.bytes_per_token
        self._limit = shard_bytes
        self._samples: list[StoredSample] = []
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._samples)

    def has_room(self, sample: StoredSample) -> bool:
        """Whether `sample` may still join; an empty shard takes any sample."""
        return not self._samples or (self._tokens + sample.tokens) * self._bytes_per_token <= self._limit

    def add(self, sample: StoredSample) -> None:
        """Let `sample` join."""
        self._samples.append(sample)
        self._tokens += sample.tokens

    def take(self) -> list[StoredSample]:
        """The samples so far; the buffer is empty afterwards."""
        samples, self._samples, self._tokens = self._samples, [], 0
        return samples


class ShardWriter:
    """Commits shards into `folder`, going on from the shards that `manifest` names."""

    def __init__(
        self, folder: Path, manifest: Manifest, shard_format: ShardFormat, after_commit: Callable[[Manifest], None]
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self._format = shard_format
        self._after_commit = after_commit

    def commit(self, samples: list[StoredSample], progress: Json, *, complete: bool) -> None:
        """Write `samples` (none: only the progress) as the next shard, then manifest and checkpoint.

        The list is the writer's from then on: it rounds the samples in it to what is stored.
        Raises StorageError where that fails; the manifest on disk is then still the one before.
        """
        round_all(samples, self._format.dtype)
        shard = self._write_shard(samples) if samples else None
        manifest = self.manifest.with_shard(shard, progress, complete=complete)
        write_manifest(self._folder, manifest)
        self.manifest = manifest
        self._after_commit(manifest)

    def _write_shard(self, samples: Sequence[StoredSample]) -> ShardEntry:
        index = len(self.manifest.shards) + 1
        form, special = self._format, frozenset(self.manifest.special_ids)
        flags: dict[Tap, Sequence[Flags]] = {}
        statistics: dict[Tap, TapStatistics] = {}
        for tap in form.taps:
            statistics[tap], norms = measure_shard(samples, tap, form.dtype, form.hidden_size)
            flags[tap] = shard_flags(samples, norms, special)
        return ShardEntry(
            index=index,
            samples=len(samples),
            tokens=sum(sample.tokens for sample in samples),
            sample_idx=index_ranges(sample.sample_idx for sample in samples),
            files=(
                *(self._write_file(file, samples, flags) for file in form.files(index)),
                self._write_statistics(index, statistics),
            ),
        )

    def _write_file(
        self, file: PlannedFile, samples: Sequence[StoredSample], flags: Mapping[Tap, Sequence[Flags]]
    ) -> StoredFile:
        with atomic_write(self._folder / file.path) as sink:
            write_samples(sink, file, self._format, self.manifest, samples, flags)
        return StoredFile(file.path, file.site, file.layer, sink.size, sink.crc32c)

    def _write_statistics(self, index: int, statistics: Mapping[Tap, TapStatistics]) -> StoredFile:
        path = f"statistics/shard_{index:04d}.safetensors"
        with atomic_write(self._folder / path) as sink:
            write_statistics(sink, statistics, self.manifest.fingerprint)
        return StoredFile(path, None, None, sink.size, sink.crc32c, kind=KIND)


def write_samples(
    sink: Checksummed,
    file: PlannedFile,
    form: ShardFormat,
    manifest: Manifest,
    samples: Sequence[StoredSample],
    flags: Mapping[Tap, Sequence[Flags]],
) -> None:
    """Write one file of a shard of the run that `manifest` is of."""
    if file.layer is None:
        write_pickle(sink, samples, form.layers, file.site, form.dtype, flags, compress=form.compress)
        return
    tap = Tap(file.layer, file.site)
    about = {name: getattr(manifest, name) for name in ("model_path", "model_type", "fingerprint")}
    write_safetensors(sink, samples, tap, form.dtype, flags[tap], about)
