"""Commits in a bucket: several files are uploaded at once, and manifests follow in shard order.

A commit in the bucket has three steps. First its objects are uploaded, and each is verified in the
bucket. Then the manifest is written: its last part and its head, in shard order, and only over the
versions that this process wrote last. Then the checkpoint is written. So the bucket's manifest is
always one that the run had, and names only objects that exist. The files may be on a disk
(mirror.py) or in memory (bucket.py).

A killed process leaves objects that no manifest names. Every start lists the bucket once, and an
object is overwritten only if it is still what that listing found. So this process notices an
earlier process that sleeps, or whose last request arrives late. Shards of one run have the same
bytes whoever writes them; other bytes stop this process.

A failure ends the publisher, and the next call raises it. `abandon` ends it at once, too: uploads
that have not arrived do not count.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

from layertap.errors import StorageError
from layertap.objects.base import ObjectInfo, ObjectStore
from layertap.objects.content import Content
from layertap.objects.ownership import OWNER_FILE, OwnObject
from layertap.objects.retry import Retry
from layertap.shards.manifest import FILE_NAME, SHARDS_A_PART, Manifest, StoredFile
from layertap.shards.manifest_files import count_parts, head_bytes, parse_manifest, part_bytes, part_name


@dataclass(frozen=True)
class Checkpoint:
    """The object that repeats the manifest's position. `content` also gets the bucket's URL."""

    name: str
    content: Callable[[str, Manifest], bytes]


@dataclass(frozen=True)
class Far:
    """A place that this process owns as long as `require_owner` does not raise."""

    store: ObjectStore
    retry: Retry
    """How the store retries."""
    require_owner: Callable[[], None]


@dataclass(frozen=True)
class _Commit:
    """A manifest to publish when `uploads` have arrived."""

    manifest: Manifest
    uploads: tuple["Future[None]", ...]


def _nothing(_: Manifest) -> None:
    pass


class Publisher:
    """Publishes commits at `far` within a `with` block, `at_once` uploads at a time.

    A thread calls `after` with each manifest once it is published.
    """

    def __init__(
        self,
        far: Far,
        at_once: int,
        checkpoint: Checkpoint | None,
        elsewhere: str,
        after: Callable[[Manifest], None] = _nothing,
    ) -> None:
        self.url = far.store.url
        self.abandoned = False
        """Whether it ended before everything had arrived."""
        self.listed: Mapping[str, ObjectInfo] = {info.name: info for info in far.store.list()}
        """The objects that existed when the publisher was made."""
        self._far = far
        self._store = far.store
        self._elsewhere = elsewhere  # the flags that name another place
        self._after = after
        self._head = OwnObject(far.store, FILE_NAME)
        self._checkpoint = None if checkpoint is None else (OwnObject(far.store, checkpoint.name), checkpoint.content)
        self.found = None if self._head.data is None else parse_manifest(far.store, self._head.data)
        """The manifest that existed when the publisher was made."""
        self._certain = {} if self.found is None else {file.path: file for file in files_of(self.found)}
        self._published = 0 if self.found is None else len(self.found.shards)  # shards
        self._part: tuple[int, OwnObject] | None = None  # the last part of the manifest, by its number
        self._behind: deque[_Commit] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._uploads = ThreadPoolExecutor(at_once, thread_name_prefix="upload")
        self._publishers = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing = self._publishers.submit(self._publish_all)
        self._publishing.add_done_callback(lambda _: self._notify())

    @property
    def behind(self) -> int:
        """How many commits wait for their uploads, or for earlier commits."""
        return len(self._behind)

    @property
    def checkpointing(self) -> bool:
        """Whether it keeps a checkpoint."""
        return self._checkpoint is not None

    @property
    def checkpoint(self) -> bytes | None:
        """The checkpoint that this process knows; None where there is none."""
        return None if self._checkpoint is None else self._checkpoint[0].data

    def claim(self, manifest: Manifest) -> None:
        """Claim the place for this run: write a manifest without shards, unless there is one.

        From then on this run may overwrite anything below the URL. So this raises StorageError
        where the place holds other objects.
        """
        if self.found is not None:
            return
        others = [name for name in self.listed if name != OWNER_FILE]
        if others:
            raise StorageError(
                f"{self.url}: holds {len(others)} objects ({others[0]}, ...) but no {FILE_NAME}; restore that, or give"
                f" another {self._elsewhere}"
            )
        self._head.write(head_bytes(replace(manifest, shards=(), progress={}, complete=False)))

    def holds(self, file: StoredFile) -> bool:
        """Return whether the place held the file.

        Where the listing gives no checksum, the place's manifest must name the file.
        """
        info = self.listed.get(file.path)
        if info is None or info.size != file.bytes:
            return False
        return file.path in self._certain if info.crc32c is None else info.crc32c == file.crc32c

    def enqueue(self, manifest: Manifest, contents: Mapping[str, Content]) -> None:
        """Upload these files, then publish `manifest`. Raises what ended the publisher."""
        self._raise()
        try:
            uploads = tuple(self._uploads.submit(self._upload, name, content) for name, content in contents.items())
        except RuntimeError:  # the pool takes no more work: the publisher is ending, and says why
            self._publishing.result()
            raise
        with self._changed:
            self._behind.append(_Commit(manifest, uploads))
            self._changed.notify_all()

    def wait_for_room(self, most: int) -> None:
        """Wait until at most `most` commits are behind. Raises what ended the publisher."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._behind) <= most or self._has_ended())
        self._raise()

    def abandon(self) -> None:
        """Stop all retries, and let every caller stop waiting."""
        with self._changed:
            self.abandoned = not self._publishing.done()
            self._changed.notify_all()
        self._far.retry.stop()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        """Publish what was enqueued, unless that failed or was abandoned: no work is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(self._has_ended)
        waits = self._publishing.done()  # do not wait for a request that hangs
        self._publishers.shutdown(wait=waits)
        self._uploads.shutdown(wait=waits, cancel_futures=True)

    def _has_ended(self) -> bool:
        return self.abandoned or self._publishing.done()

    def _raise(self) -> None:
        if self.abandoned:
            raise StorageError(f"{self.url}: the upload was abandoned; run the same command again")
        if self._publishing.done():
            self._publishing.result()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _upload(self, name: str, content: Content) -> None:
        before = self.listed.get(name)
        self._store.put(name, content, replaces=before and before.version)

    def _publish_all(self) -> None:
        """Publish commit after commit until the last. A failure stops all retries."""
        with ExitStack() as failed:
            failed.callback(self._give_up)
            while self._waits_for_commit():
                for upload in self._behind[0].uploads:
                    upload.result()
                self._publish_arrived()
            failed.pop_all()

    def _waits_for_commit(self) -> bool:
        """Wait for a commit to publish. Return False when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._behind or self._closing)
            return bool(self._behind)

    def _give_up(self) -> None:
        self._far.retry.stop()
        self._uploads.shutdown(wait=True, cancel_futures=True)

    def _publish_arrived(self) -> None:
        """Publish the newest commit whose files, and those of all earlier commits, have arrived."""
        arrived = 1
        while arrived < len(self._behind) and all(map(_has_arrived, self._behind[arrived].uploads)):
            arrived += 1
        manifest = self._behind[arrived - 1].manifest
        self._far.require_owner()
        self._publish_parts(manifest)
        self._head.write(head_bytes(manifest))
        if self._checkpoint is not None:
            written, content = self._checkpoint
            written.write(content(self.url, manifest))
        self._after(manifest)
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


def files_of(manifest: Manifest) -> Iterator[StoredFile]:
    """Return every file that the manifest names."""
    return (file for shard in manifest.shards for file in shard.files)


def _has_arrived(upload: "Future[None]") -> bool:
    return upload.done() and not upload.cancelled() and upload.exception() is None
