"""A copy of an output folder in a bucket, made while the run goes on.

The local commit comes first, in its own order (writer.py); then `offer` hands the new manifest to
the mirror, which uploads the files that it names, several at once. A shard counts in the bucket in
this order: its objects, each verified at the far end; then the manifest, its last part and its
head, advanced in shard order by writes from the versions that this process wrote last; then the
checkpoint. So the bucket's manifest is always one that the run had, and names only what is there.
Then, if asked, the local files of that shard are deleted.

Killed anywhere, the next start lists the bucket once and uploads what is missing. On a new machine,
with nothing on its disk, the run goes on from the bucket's manifest (`reconcile`).

A failure ends the mirror: the next `offer`, or `finish`, raises it. `offer` waits while more than
`uploads_at_once` shards are behind: no more than these, and two that the writer has, are lost with
a machine, or wait on a disk from which they are to be deleted.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from layertap.config.upload import UploadConfig
from layertap.errors import DamageError, StorageError
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.content import FileContent
from layertap.objects.ownership import OWNER_FILE, Owner, OwnObject
from layertap.objects.retry import Retry
from layertap.shards.manifest import FILE_NAME, SHARDS_A_PART, Manifest, StoredFile
from layertap.shards.manifest_files import (
    count_parts,
    head_bytes,
    load_manifest,
    parse_manifest,
    part_bytes,
    part_name,
    write_manifest,
)


@dataclass(frozen=True)
class Checkpoint:
    """The object that repeats the manifest's position; `content` is told the bucket's URL too."""

    name: str
    content: Callable[[str, Manifest], bytes]


@dataclass(frozen=True)
class _Commit:
    """A manifest that is to be published when `uploads` have arrived."""

    manifest: Manifest
    uploads: tuple["Future[None]", ...]


class Mirror:
    """Copies `folder` to `store` within a `with` block; `reconcile` and `begin` come first."""

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        config: UploadConfig,
        retry: Retry,
        checkpoint: Checkpoint | None,
        require_owner: Callable[[], None],
    ) -> None:
        self.url = store.url
        self._store = store
        self._folder = folder
        self._config = config
        self._retry = retry
        self._require_owner = require_owner
        self._listed = {info.name: info for info in store.list()}
        self._manifest_object = OwnObject(store, FILE_NAME)
        self._checkpoint = None if checkpoint is None else (OwnObject(store, checkpoint.name), checkpoint.content)
        data = self._manifest_object.data
        self._found = None if data is None else parse_manifest(store, data)
        self._published = self.held  # shards
        self._part: tuple[int, OwnObject] | None = None  # the last part of the manifest, by its number
        self._offered = 0  # shards
        self._deleted = 0  # shards
        self._behind: deque[_Commit] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._uploads = ThreadPoolExecutor(config.uploads_at_once, thread_name_prefix="upload")
        self._publishers = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing = self._publishers.submit(self._publish_all)
        self._publishing.add_done_callback(lambda _: self._notify())

    @property
    def held(self) -> int:
        """How many shards the bucket's manifest named when the mirror was made."""
        return 0 if self._found is None else len(self._found.shards)

    def reconcile(self, fresh: Manifest) -> None:
        """Give the folder the bucket's manifest, where that is further on than the folder's own.

        Raises RunMismatchError where either belongs to another run than `fresh`, DamageError where
        the two disagree.
        """
        local = open_store(str(self._folder))
        there, here = self._found, load_manifest(local)
        if here is not None:
            here.require_same_run(fresh, self._folder)
        if there is None:
            return
        there.require_same_run(fresh, self.url, "--gcs_prefix, --upload_to or --worker_id")
        if here is not None:
            self._require_agreement(here, there)
        if here is None or _progress(there) > _progress(here):
            write_manifest(local, there)

    def begin(self, manifest: Manifest) -> None:
        """Upload whatever `manifest`, the folder's, names and the bucket lacks; then follow it."""
        if self._found is None:
            self._require_nothing_of_others()
            # From now on, everything below the URL belongs to this run, and may be written over by
            # it.
            self._manifest_object.write(head_bytes(replace(manifest, shards=(), progress={}, complete=False)))
        certain = set() if self._found is None else {file.path for file in _files(self._found)}
        missing = [file for file in _files(manifest) if not self._holds(file, certain)]
        for file in missing:
            if not (self._folder / file.path).is_file():
                raise DamageError(
                    f"{self.url}/{file.path}: is gone or is not what {FILE_NAME} says, and {self._folder} does not"
                    " have it either; restore it, or give another place to upload to"
                )
        self._enqueue(manifest, missing)

    def offer(self, manifest: Manifest) -> None:
        """Wait for room, then upload the shards that came since; raises what ended the mirror."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._behind) <= self._config.uploads_at_once or self._publishing.done())
        self._raise()
        self._enqueue(manifest, [file for shard in manifest.shards[self._offered :] for file in shard.files])

    def finish(self) -> None:
        """Wait until the bucket holds all that was offered; raises what ended the mirror."""
        with self._changed:
            self._changed.wait_for(lambda: not self._behind or self._publishing.done())
        self._raise()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        """Upload what was offered, unless the mirror has failed; it is work that was done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._publishers.shutdown(wait=True)
        self._uploads.shutdown(wait=True, cancel_futures=True)

    def _raise(self) -> None:
        if self._publishing.done():
            self._publishing.result()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _enqueue(self, manifest: Manifest, files: Iterable[StoredFile]) -> None:
        try:
            uploads = tuple(self._uploads.submit(self._upload, file) for file in files)
        except RuntimeError:  # nothing is taken any more: the mirror is ending, and will say why
            self._publishing.result()
            raise
        with self._changed:
            self._offered = len(manifest.shards)
            self._behind.append(_Commit(manifest, uploads))
            self._changed.notify_all()

    def _upload(self, file: StoredFile) -> None:
        before = self._listed.get(file.path)
        content = FileContent(self._folder / file.path, file.crc32c)
        self._store.put(file.path, content, replaces=before and before.version)

    def _publish_all(self) -> None:
        """Publish commit after commit to the last; a failure ends all that is tried again."""
        with ExitStack() as failed:
            failed.callback(self._give_up)
            while self._waits_for_commit():
                for upload in self._behind[0].uploads:
                    upload.result()
                self._publish_arrived()
            failed.pop_all()

    def _waits_for_commit(self) -> bool:
        """Whether there is a commit to publish; False when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._behind or self._closing)
            return bool(self._behind)

    def _give_up(self) -> None:
        self._retry.stop()
        self._uploads.shutdown(wait=True, cancel_futures=True)

    def _publish_arrived(self) -> None:
        """Publish the newest commit whose files, and those of all before it, have arrived."""
        arrived = 1
        while arrived < len(self._behind) and all(map(_has_arrived, self._behind[arrived].uploads)):
            arrived += 1
        manifest = self._behind[arrived - 1].manifest
        self._require_owner()
        self._publish_parts(manifest)
        self._manifest_object.write(head_bytes(manifest))
        if self._checkpoint is not None:
            written, content = self._checkpoint
            written.write(content(self.url, manifest))
        if self._config.delete_local_after_upload:
            self._delete_local(manifest)
        with self._changed:
            for _ in range(arrived):
                self._behind.popleft()
            self._changed.notify_all()

    def _publish_parts(self, manifest: Manifest) -> None:
        """Write the parts of the manifest that have more shards than the bucket's head counts."""
        for number in range(self._published // SHARDS_A_PART + 1, count_parts(len(manifest.shards)) + 1):
            if self._part is None or self._part[0] != number:
                self._part = number, OwnObject(self._store, part_name(number))
            self._part[1].write(part_bytes(manifest, number))
        self._published = len(manifest.shards)

    def _delete_local(self, manifest: Manifest) -> None:
        for shard in manifest.shards[self._deleted :]:
            for file in shard.files:
                path = self._folder / file.path
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(f"{path}: cannot be deleted: {error.strerror}") from error
        self._deleted = len(manifest.shards)

    def _holds(self, file: StoredFile, certain: set[str]) -> bool:
        """Whether the bucket holds the file; without a checksum, its manifest must say so."""
        info = self._listed.get(file.path)
        if info is None or info.size != file.bytes:
            return False
        return file.path in certain if info.crc32c is None else info.crc32c == file.crc32c

    def _require_agreement(self, here: Manifest, there: Manifest) -> None:
        for ours, theirs in zip(here.shards, there.shards, strict=False):
            if ours != theirs:
                raise DamageError(
                    f"{self._folder} and {self.url} hold different shards {ours.index} of the same run; find out which"
                    " is right (`layertap verify`), and remove the other, or upload to another place"
                )

    def _require_nothing_of_others(self) -> None:
        others = [name for name in self._listed if name != OWNER_FILE]
        if others:
            raise StorageError(
                f"{self.url}: holds {len(others)} objects ({others[0]}, ...) but no {FILE_NAME}; restore that, or give"
                " another --gcs_prefix or --upload_to"
            )


@contextmanager
def open_mirror(
    url: str | None, folder: Path, config: UploadConfig, checkpoint: Checkpoint | None
) -> Iterator[Mirror | None]:
    """The mirror of `folder` at `url`, which this process owns meanwhile; None without a URL.

    Raises StorageError where another process owns it, UsageError or AccessError where there is no
    such bucket, or where this process must not write to it.
    """
    if url is None:
        yield None
        return
    retry = Retry(config.upload_retry_seconds)
    with (
        closing(open_store(url, retry)) as store,
        Owner(store) as owner,
        Mirror(store, folder, config, retry, checkpoint, owner.require) as mirror,
    ):
        yield mirror


def _files(manifest: Manifest) -> Iterable[StoredFile]:
    return (file for shard in manifest.shards for file in shard.files)


def _progress(manifest: Manifest) -> tuple[int, bool]:
    return len(manifest.shards), manifest.complete


def _has_arrived(upload: "Future[None]") -> bool:
    return upload.done() and not upload.cancelled() and upload.exception() is None
