"""A copy of an output folder in a bucket, made while the run continues.

The local commit comes first, in its own order (writer.py). Then `offer` gives the new manifest to
the mirror. The mirror uploads the files that the manifest names, and then publishes the manifest
(publisher.py). Then it deletes the local files of that shard, if you asked for that.

If the process is killed at any point, the next start lists the bucket once and uploads what is
missing. On a new machine with an empty disk, the run continues from the bucket's manifest
(`reconcile`).

A failure ends the mirror, and the next `offer` or `finish` raises it. `offer` waits while more than
`uploads_at_once` shards are behind. So a lost machine costs at most these shards and the two that
the writer has. No more than that waits on a disk to be deleted.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from layertap.config.upload import UploadConfig
from layertap.errors import DamageError, StorageError
from layertap.objects import open_store
from layertap.objects.content import FileContent
from layertap.objects.ownership import Owner
from layertap.objects.retry import Retry
from layertap.shards.manifest import FILE_NAME, Manifest, StoredFile
from layertap.shards.manifest_files import load_manifest, write_manifest
from layertap.shards.publisher import Checkpoint, Far, Publisher, files_of


class Mirror:
    """Copies `folder` to `far` within a `with` block. Call `reconcile` and `begin` first."""

    def __init__(self, far: Far, folder: Path, config: UploadConfig, checkpoint: Checkpoint | None) -> None:
        self.url = far.store.url
        self._folder = folder
        self._config = config
        elsewhere = "--gcs_prefix or --upload_to"
        self._publisher = Publisher(far, config.uploads_at_once, checkpoint, elsewhere, self._follow)
        self._found = self._publisher.found
        self._offered = 0  # shards
        self._deleted = 0  # shards

    @property
    def held(self) -> int:
        """How many shards the bucket's manifest named when the mirror was made."""
        return 0 if self._found is None else len(self._found.shards)

    @property
    def behind(self) -> int:
        """How many commits the bucket does not have yet."""
        return self._publisher.behind

    def reconcile(self, fresh: Manifest) -> None:
        """Copy the bucket's manifest to the folder, if it is ahead of the folder's own.

        Raises RunMismatchError where either belongs to another run than `fresh`, and DamageError
        where the two disagree.
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
        """Upload the files that the folder's `manifest` names and the bucket lacks.

        Later offers continue from there.
        """
        self._publisher.claim(manifest)
        missing = [file for file in files_of(manifest) if not self._publisher.holds(file)]
        for file in missing:
            if not (self._folder / file.path).is_file():
                raise DamageError(
                    f"{self.url}/{file.path}: missing, or not what {FILE_NAME} says, and {self._folder} does not"
                    " have it either; restore it, or upload to another place"
                )
        self._enqueue(manifest, missing)

    def offer(self, manifest: Manifest) -> None:
        """Wait for room, then upload the new shards. Raises the error that ended the mirror."""
        self._publisher.wait_for_room(self._config.uploads_at_once)
        self._enqueue(manifest, [file for shard in manifest.shards[self._offered :] for file in shard.files])

    def finish(self) -> None:
        """Wait until the bucket holds all offered shards. Raises what ended the mirror."""
        self._publisher.wait_for_room(0)

    def __enter__(self) -> "Mirror":
        self._publisher.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        """Upload what was offered, unless the mirror has failed, so that no work is lost."""
        self._publisher.__exit__(*raised)

    def _enqueue(self, manifest: Manifest, files: Iterable[StoredFile]) -> None:
        contents = {file.path: FileContent(self._folder / file.path, file.crc32c) for file in files}
        self._publisher.enqueue(manifest, contents)
        self._offered = len(manifest.shards)

    def _follow(self, manifest: Manifest) -> None:
        """Delete the local files of published shards, if the config asks for that."""
        if not self._config.delete_local_after_upload:
            return
        for shard in manifest.shards[self._deleted :]:
            for file in shard.files:
                path = self._folder / file.path
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(f"{path}: cannot be deleted: {error.strerror}") from error
        self._deleted = len(manifest.shards)

    def _require_agreement(self, here: Manifest, there: Manifest) -> None:
        for ours, theirs in zip(here.shards, there.shards, strict=False):
            if ours != theirs:
                raise DamageError(
                    f"{self._folder} and {self.url} hold different shards {ours.index} of the same run; find out which"
                    " is right (`layertap verify`), and remove the other, or upload to another place"
                )


@contextmanager
def open_mirror(
    url: str | None, folder: Path, config: UploadConfig, checkpoint: Checkpoint | None
) -> Iterator[Mirror | None]:
    """Open the mirror of `folder` at `url`; None without a URL.

    This process owns the mirror within the block. Raises StorageError where another process owns
    it, UsageError or AccessError where there is no such bucket or this process may not write to it.
    """
    if url is None:
        yield None
        return
    retry = Retry(config.upload_retry_seconds)
    with (
        closing(open_store(url, retry)) as store,
        Owner(store) as owner,
        Mirror(Far(store, retry, owner.require), folder, config, checkpoint) as mirror,
    ):
        yield mirror


def _progress(manifest: Manifest) -> tuple[int, bool]:
    return len(manifest.shards), manifest.complete
