"""Shards to their store, each committed once and in order.

The order of a commit: the files of the shard, each whole before the next; then the manifest that
lists them; then `after_commit` (the run's checkpoint). Killed between any two of these, the restart
finds the manifest of the commit before, and writes the same shard again over whatever is there.
Where a bucket takes the shards, another `commit` hands them over, and holds to the same order
(pipeline/output.py).

To encode a shard takes processors, to append it a disk. So `commit` may hand the append to another
thread (`appending_by`), and go on with the next shard meanwhile; appends stay in order, one at a
time.

A shard is closed before its activations, uncompressed and in the storage dtype, would exceed
`shard_bytes`; a single sample larger than that gets a shard of its own. So the shards' boundaries
depend on the samples and the settings alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

from layertap.core.sample import Sample
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.shards.encode import EncodedShard, ShardFormat, encode
from layertap.shards.manifest import Json, Manifest
from layertap.shards.manifest_files import commit_manifest

Work = Literal["encoding", "storing", "uploading"]
"""What the output of a run takes: of uploads, what the disk's next shard waited for."""


class ShardBuffer:
    """Collects samples until the next one would make the shard too large."""

    def __init__(self, form: ShardFormat, shard_bytes: int) -> None:
        self._bytes_per_token = form.bytes_per_token
        self._limit = shard_bytes
        self._samples: list[Sample] = []
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._samples)

    def has_room(self, sample: Sample) -> bool:
        """Whether `sample` may still join; an empty shard takes any sample."""
        return not self._samples or (self._tokens + sample.tokens) * self._bytes_per_token <= self._limit

    def add(self, sample: Sample) -> None:
        """Let `sample` join."""
        self._samples.append(sample)
        self._tokens += sample.tokens

    def take(self) -> list[Sample]:
        """The samples so far; the buffer is empty afterwards."""
        samples, self._samples, self._tokens = self._samples, [], 0
        return samples


Commit = Callable[[ObjectStore, Mapping[str, MemoryContent], Manifest], None]
"""Puts files into a store, by path, and then the manifest that lists them; raises StorageError
where that fails, with the manifest in the store still the one before.
"""


def commit_files(store: ObjectStore, contents: Mapping[str, MemoryContent], manifest: Manifest) -> None:
    """A `Commit` that is done when it returns, for the only writer of the store."""
    for path, content in contents.items():
        store.put(path, content, replaces=OWNED)
    commit_manifest(store, manifest)


def _nothing(_: Manifest) -> None:
    pass


class ShardWriter:
    """Commits shards into `store`, whose only writer it is, going on from the shards that
    `manifest` lists.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        form: ShardFormat,
        after_commit: Callable[[Manifest], None] = _nothing,
        commit: Commit = commit_files,
    ) -> None:
        self.manifest = manifest
        self._store = store
        self._form = form
        self._after_commit = after_commit
        self._commit = commit
        self._submit: Callable[[Callable[[], None]], None] | None = None
        self._encoded = 0
        self.spent: dict[Work, float] = dict.fromkeys(get_args(Work), 0.0)
        """Seconds on each kind of work; in a block of `appending_by` at the same time."""

    @contextmanager
    def appending_by(self, submit: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """In the block, `commit` hands each append to `submit`, and does not wait for it.

        They must run in that order, and after one that failed none may. The manifest is then that
        of the last append.
        """
        self._submit, self._encoded = submit, len(self.manifest.shards)
        try:
            yield
        finally:
            self._submit = None

    def commit(self, samples: Sequence[Sample], progress: Json, *, complete: bool) -> None:
        """Encode `samples` (none: only the progress) as the next shard, and append it."""
        before = len(self.manifest.shards) if self._submit is None else self._encoded
        shard = self.encode(before + 1, samples) if samples else None
        append = partial(self.append, shard, progress, complete=complete)
        if self._submit is None:
            append()
        else:
            self._encoded += shard is not None
            self._submit(append)

    def encode(self, index: int, samples: Sequence[Sample]) -> EncodedShard:
        """The samples as shard `index`; writes nothing."""
        manifest, begun = self.manifest, time.monotonic()
        about = {name: getattr(manifest, name) for name in ("model_path", "model_type", "fingerprint")}
        shard = encode(index, samples, self._form, about)
        self.spent["encoding"] += time.monotonic() - begun
        return shard

    def append(self, shard: EncodedShard | None, progress: Json, *, complete: bool) -> None:
        """Commit the next shard, or the progress alone; raises StorageError where that fails."""
        contents = {} if shard is None else shard.contents
        begun = time.monotonic()
        entry = None if shard is None else shard.entry
        manifest = self.manifest.with_shard(entry, progress, complete=complete)
        self._commit(self._store, contents, manifest)
        self.manifest = manifest
        stored = time.monotonic()
        self._after_commit(manifest)
        self.spent["storing"] += stored - begun
        self.spent["uploading"] += time.monotonic() - stored
