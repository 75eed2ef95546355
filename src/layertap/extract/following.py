"""The mirror of a run's output, as its settings ask for it: the place, its owner, the checkpoint beside the shards."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from layertap.config.extract import ExtractConfig
from layertap.extract.checkpoint import checkpoint_bytes, checkpoint_name
from layertap.objects import open_store
from layertap.objects.ownership import Owner
from layertap.objects.retry import Retry
from layertap.shards.mirror import Checkpoint, Mirror


@contextmanager
def following(config: ExtractConfig, output: Path, url: str | None, name: str) -> Iterator[Mirror | None]:
    """The mirror at `url` of the `output` of the worker of this name; None without one. This process owns it meanwhile.

    Raises StorageError where another process owns it, UsageError or AccessError where there is no such bucket, or
    where it must not be written to.
    """
    if url is None:
        yield None
        return
    retry = Retry(config.upload.upload_retry_seconds)
    checkpoint = Checkpoint(checkpoint_name(name), lambda manifest: checkpoint_bytes(url, manifest))
    with closing(open_store(url, retry)) as store, Owner(store) as owner:
        beside = checkpoint if config.checkpointing else None
        with Mirror(store, output, config.upload, retry, beside, owner.require) as mirror:
            yield mirror
