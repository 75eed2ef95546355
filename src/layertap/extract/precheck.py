"""What would stop a run anyway, found out before the weights of a Hub model are fetched: that can take an hour.

Folders are looked at, not made: what is refused leaves nothing behind. Of a dataset the first record is read, and a
bucket is asked for one object; both only for a model on the Hub, since the run itself does so as soon for a local one.
"""

import os
from contextlib import closing
from pathlib import Path

from layertap.config.extract import ExtractConfig
from layertap.dataset import read_records
from layertap.errors import UsageError
from layertap.objects import open_store
from layertap.objects.retry import Retry
from layertap.shards.manifest import FILE_NAME


def require_folders(config: ExtractConfig) -> None:
    """Raise UsageError where output or checkpoint cannot be written."""
    require_writable("output_dir", config.output_folder)
    if config.checkpointing:
        require_writable("checkpoint_dir", config.checkpoint_folder)


def require_writable(flag: str, folder: Path) -> None:
    """Raise UsageError where `folder` cannot be made or written to, as far as that shows without making it."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise UsageError(f"--{flag} {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag} {folder}: {there} cannot be written to; give another folder")


def require_far_ends(config: ExtractConfig, url: str | None) -> None:
    """Raise DatasetError where there is no dataset, UsageError or AccessError where the output cannot go to `url`."""
    if config.dataset_path is not None:
        next(read_records(config.dataset_path, dataset_format=config.dataset_format, max_tasks=1))
    if url is not None:
        with closing(open_store(url, Retry(config.upload.upload_retry_seconds))) as store:
            store.stat(FILE_NAME)
