"""Writing shards into their store: each is committed once, and in order.

A commit writes the files of the shard, one after another; then the manifest that lists them; then
it calls `after_commit` (the run's checkpoint). If the process is killed between two of these, the
restart finds the manifest of the commit before. It writes the same shard again, over any files that
exist. For a bucket another `commit` uploads the shards, in the same order (pipeline/output.py).

Encoding a shard keeps processors busy; appending it keeps a disk busy. So `commit` may give the
append to another thread (`appending_by`) and encode the next shard meanwhile. Appends stay in
order, one at a time.

A shard is closed before its activations, uncompressed and in the storage dtype, would exceed
`shard_bytes`. A single sample that is larger gets its own shard. So only the samples and the
settings decide where a shard ends.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

from layertap.core.sample import Sample
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.shards.encode import EncodedShard, encode
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Json, Manifest
from layertap.shards.manifest_files import commit_manifest

Work = Literal["encoding", "storing", "uploading"]
"""The kinds of work in the output of a run. "uploading": the next shard waits for uploads."""


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
        """Return whether `sample` still fits. Any sample fits into an empty shard."""
        return not self._samples or (self._tokens + sample.tokens) * self._bytes_per_token <= self._limit

    def add(self, sample: Sample) -> None:
        """Add `sample` to the shard."""
        self._samples.append(sample)
        self._tokens += sample.tokens

    def take(self) -> list[Sample]:
        """Return the samples so far, and empty the buffer."""
        samples, self._samples, self._tokens = self._samples, [], 0
        return samples


Commit = Callable[[ObjectStore, Mapping[str, MemoryContent], Manifest], None]
"""Puts files into a store, by path, and then the manifest that lists them.

Raises StorageError where that fails; the store then still has the manifest from before.
"""


def commit_files(store: ObjectStore, contents: Mapping[str, MemoryContent], manifest: Manifest) -> None:
    """Commit to a store that has no other writer. The commit is done when this returns."""
    for path, content in contents.items():
        store.put(path, content, replaces=OWNED)
    commit_manifest(store, manifest)


def _nothing(_: Manifest) -> None:
    pass


class ShardWriter:
    """Commits shards into `store`, after the shards that `manifest` lists.

    The store must have no other writer.
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
        """Seconds on each kind of work. In a block of `appending_by` they overlap."""

    @contextmanager
    def appending_by(self, submit: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """Within the block, `commit` passes each append to `submit` and does not wait for it.

        `submit` must run appends in order, and none after one that failed. `manifest` is then the
        one of the last append.
        """
        self._submit, self._encoded = submit, len(self.manifest.shards)
        try:
            yield
        finally:
            self._submit = None

    def commit(self, samples: Sequence[Sample], progress: Json, *, complete: bool) -> None:
        """Encode and append `samples` as the next shard; without samples, commit the progress."""
        before = len(self.manifest.shards) if self._submit is None else self._encoded
        shard = self.encode(before + 1, samples) if samples else None
        append = partial(self.append, shard, progress, complete=complete)
        if self._submit is None:
            append()
        else:
            self._encoded += shard is not None
            self._submit(append)

    def encode(self, index: int, samples: Sequence[Sample]) -> EncodedShard:
        """Encode the samples as shard `index`. This writes nothing."""
        manifest, begun = self.manifest, time.monotonic()
        about = {name: getattr(manifest, name) for name in ("model_path", "model_type", "fingerprint")}
        shard = encode(index, samples, self._form, about)
        self.spent["encoding"] += time.monotonic() - begun
        return shard

    def append(self, shard: EncodedShard | None, progress: Json, *, complete: bool) -> None:
        """Commit the next shard, or only the progress. Raises StorageError where that fails."""
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
