"""Shards to disk, each committed once.

The order of a commit, for a shard that is closed: its files, each written under a temporary name, synced and renamed;
then the manifest that names them; then `after_commit` (the run's checkpoint). Killed between any two of these, the
restart finds the manifest of the commit before, and writes the same shard again over whatever lies there.

A shard is one file, or with several sites one file in each site's folder. It is closed before its activations,
uncompressed and in the storage dtype, would exceed `shard_bytes`; a single sample larger than that gets a shard of
its own. So the shards' boundaries depend on the samples and the settings alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layertap.store.files import atomic_write
from layertap.store.manifest import Json, Manifest, ShardEntry, StoredFile, index_ranges, write_manifest
from layertap.store.pickles import write_pickle
from layertap.store.samples import StoredSample
from layertap.tap import Site


@dataclass(frozen=True)
class ShardFormat:
    """How shards are written."""

    layers: tuple[int, ...]
    sites: tuple[Site, ...]
    hidden_size: int
    dtype: np.dtype
    compress: bool

    @property
    def bytes_per_token(self) -> int:
        """Bytes of activations that a token brings, before compression."""
        return len(self.layers) * len(self.sites) * self.hidden_size * self.dtype.itemsize

    def path(self, index: int, site: Site) -> str:
        """Where the file of shard `index` (counted from 1) for `site` lies, below the output folder."""
        name = f"shard_{index:04d}.pkl" + (".gz" if self.compress else "")
        return name if len(self.sites) == 1 else f"{site}/{name}"


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

    def commit(self, samples: Sequence[StoredSample], progress: Json, *, complete: bool) -> None:
        """Write `samples` (none: only the progress) as the next shard, then manifest and checkpoint.

        Raises StorageError where that fails; the manifest on disk is then still the one before.
        """
        shard = self._write_shard(samples) if samples else None
        manifest = self.manifest.with_shard(shard, progress, complete=complete)
        write_manifest(self._folder, manifest)
        self.manifest = manifest
        self._after_commit(manifest)

    def _write_shard(self, samples: Sequence[StoredSample]) -> ShardEntry:
        index = len(self.manifest.shards) + 1
        return ShardEntry(
            index=index,
            samples=len(samples),
            tokens=sum(sample.tokens for sample in samples),
            sample_idx=index_ranges(sample.sample_idx for sample in samples),
            files=tuple(self._write_file(index, site, samples) for site in self._format.sites),
        )

    def _write_file(self, index: int, site: Site, samples: Sequence[StoredSample]) -> StoredFile:
        path, form = self._format.path(index, site), self._format
        with atomic_write(self._folder / path) as sink:
            write_pickle(sink, samples, form.layers, site, form.dtype, compress=form.compress)
        return StoredFile(path, site, sink.size, sink.crc32c)
