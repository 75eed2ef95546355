"""Where a run's shards go: a folder, maybe with a copy elsewhere; or a bucket, and no disk.

A run knows an `Output`. It asks where to continue (`resume`), calls `begin`, gives one shard at a
time to the writer that it gets, and waits at the end until all of them count.

**A folder** holds a shard when the writer's call returns. A copy (shards/mirror.py) follows.

**A URL** as `--output_dir`: shards go from memory to the bucket, up to `--uploads_at_once` of them
at the same time, and nothing is written to the disk. A shard counts once its objects are verified
there and the manifest names it (shards/publisher.py). So the writer's call returns before that, and
only waits for room. If a machine is lost, the shards on their way are lost, and at most `IN_MEMORY`
more. They are computed again.

A killed run may leave objects that no manifest names. The next start writes them again with the
same bytes, since a run is a function of its settings. If that start ends earlier (because
`--max_tokens_total` is smaller), it deletes the rest.

When interrupted, it uploads computed shards for at most `INTERRUPTED_SECONDS`, and reports the
result. (SIGTERM leaves less time: process/ending.py.)
"""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

from layertap.config.upload import UploadConfig
from layertap.objects import open_store
from layertap.objects.base import ObjectInfo, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.objects.files import remove_leftovers
from layertap.objects.folder_lock import exclusive
from layertap.objects.ownership import Owner
from layertap.objects.retry import Retry
from layertap.pipeline.checkpoint import (
    checkpoint_bytes,
    checkpoint_name,
    checkpoint_path,
    resume,
    resume_at,
    write_checkpoint,
)
from layertap.pipeline.setup import Setup
from layertap.pipeline.windows import Position
from layertap.shards.form import ShardFormat, statistics_path
from layertap.shards.manifest import Manifest, shard_number
from layertap.shards.mirror import Mirror, open_mirror
from layertap.shards.publisher import Checkpoint, Far, Publisher
from layertap.shards.writer import ShardWriter

INTERRUPTED_SECONDS = 30.0
"""How long an interrupted run may still upload what it has computed."""
IN_MEMORY = 3
"""Shards of a run in memory besides those on their way: one fills, one waits, one is encoded."""


@runtime_checkable
class Output(Protocol):
    """The output of one run, which this process owns; call `begin` after `resume`."""

    @property
    def behind(self) -> int:
        """How many commits are on their way to a bucket."""

    def resume(self, fresh: Manifest) -> tuple[Manifest, Position]:
        """The manifest to continue from (`fresh` if there is none) and the next window's position.

        Raises RunMismatchError if another run is there, StorageError if shards are gone.
        """

    def begin(self, manifest: Manifest) -> None:
        """Prepare the place for this run, which has this manifest."""

    def writer(self, manifest: Manifest, form: ShardFormat) -> ShardWriter:
        """The writer for the shards that follow those of `manifest`."""

    def wait_for_room(self) -> None:
        """Wait for uploads if the next shard would have to; raises the error that ended them."""

    def hurrying(self) -> AbstractContextManager[None]:
        """A block; once it is interrupted, uploads have little time left."""

    def finish(self) -> None:
        """Wait until all shards given to the writer count; raises the error that prevents it."""


@contextmanager
def open_output(setup: Setup) -> Iterator[Output]:
    """The run's output while the block runs.

    Raises StorageError if another process writes there, UsageError or AccessError if nothing can be
    written.
    """
    config = setup.config
    beside = Checkpoint(checkpoint_name(setup.name), checkpoint_bytes) if config.checkpointing else None
    if config.output_url is not None:
        with _open_bucket(config.output_url, config.upload, beside, setup.shard_format) as bucket:
            yield bucket
        return
    folder = config.output_folder
    checkpoint = checkpoint_path(config.checkpoint_folder, setup.name) if config.checkpointing else None
    with exclusive(folder):
        remove_leftovers(folder)
        with open_mirror(setup.upload_url, folder, config.upload, beside) as mirror:
            yield FolderOutput(folder, checkpoint, mirror)


class FolderOutput:
    """A folder of this machine, and a copy of it elsewhere if you asked for one."""

    def __init__(self, folder: Path, checkpoint: Path | None, mirror: Mirror | None) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._mirror = mirror

    @property
    def behind(self) -> int:
        return 0 if self._mirror is None else self._mirror.behind

    def resume(self, fresh: Manifest) -> tuple[Manifest, Position]:
        if self._mirror is not None:
            self._mirror.reconcile(fresh)
        held = 0 if self._mirror is None else self._mirror.held
        return resume(self._folder, fresh, self._checkpoint, held=held)

    def begin(self, manifest: Manifest) -> None:
        if self._mirror is not None:
            self._mirror.begin(manifest)

    def writer(self, manifest: Manifest, form: ShardFormat) -> ShardWriter:
        return ShardWriter(open_store(str(self._folder)), manifest, form, self._follow)

    def wait_for_room(self) -> None:
        """Do nothing: the writer's thread waits itself, and commits here meanwhile."""

    def hurrying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        if self._mirror is not None:
            self._mirror.finish()

    def _follow(self, manifest: Manifest) -> None:
        """What to do after a local commit."""
        if self._checkpoint is not None:
            write_checkpoint(self._checkpoint, self._folder, manifest)
        if self._mirror is not None:
            self._mirror.offer(manifest)


class BucketOutput:
    """A bucket that a URL names. Shards go there from memory."""

    def __init__(self, store: ObjectStore, publisher: Publisher, form: ShardFormat, most: int) -> None:
        self._store = store
        self._publisher = publisher
        self._form = form
        self._most = most  # shards on their way
        self._newest: Manifest | None = None
        self._patience: threading.Timer | None = None

    @property
    def behind(self) -> int:
        return self._publisher.behind

    def resume(self, fresh: Manifest) -> tuple[Manifest, Position]:
        return resume_at(self._publisher, fresh)

    def begin(self, manifest: Manifest) -> None:
        self._publisher.claim(manifest)

    def writer(self, manifest: Manifest, form: ShardFormat) -> ShardWriter:
        self._newest = manifest
        return ShardWriter(self._store, manifest, form, commit=self._commit)

    def wait_for_room(self) -> None:
        self._publisher.wait_for_room(self._most - 1)

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            if self._patience is None:
                self._patience = threading.Timer(INTERRUPTED_SECONDS, self._publisher.abandon)
                self._patience.daemon = True
                self._patience.start()
                self._say(f"uploading what is computed, for {INTERRUPTED_SECONDS:.0f} s at most")
            raise

    def finish(self) -> None:
        self._publisher.wait_for_room(0)
        if self._newest is not None and self._newest.complete and self._store.conditional:
            for info in self._left_over(len(self._newest.shards)):
                self._store.delete_if(info.name, info.version)

    def close(self) -> None:
        """Report the shards of an interrupted run; the publisher has ended."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience.join()
            lost = "what had not arrived was given up, and will be computed again"
            self._say(lost if self._publisher.abandoned else "what was computed is there")

    def _commit(self, _: ObjectStore, contents: Mapping[str, MemoryContent], manifest: Manifest) -> None:
        """Give a shard to the publisher, once there is room."""
        self.wait_for_room()
        self._publisher.enqueue(manifest, contents)
        self._newest = manifest

    def _left_over(self, shards: int) -> Iterator[ObjectInfo]:
        """Objects of later shards, from a start that was to run longer."""
        for info in self._publisher.listed.values():
            number = shard_number(info.name)
            own = {*self._form.files(number), statistics_path(number)} if number > shards else ()
            if info.name in own:
                yield info

    def _say(self, what: str) -> None:
        print(f"{self._publisher.url}: {what}", file=sys.stderr, flush=True)


@contextmanager
def _open_bucket(
    url: str, config: UploadConfig, checkpoint: Checkpoint | None, form: ShardFormat
) -> Iterator[BucketOutput]:
    retry = Retry(config.upload_retry_seconds)
    with closing(open_store(url, retry)) as store, Owner(store, elsewhere="--output_dir") as owner:
        far = Far(store, retry, owner.require)
        publisher = Publisher(far, config.uploads_at_once, checkpoint, "--output_dir")
        output = BucketOutput(store, publisher, form, config.uploads_at_once)
        try:
            with publisher:
                yield output
        finally:
            output.close()
            if publisher.abandoned:
                owner.leave()
