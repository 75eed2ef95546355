"""An output folder behind a URL, read by ranges: nothing goes to the disk, and one file is in memory at a time."""

import sys
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO

from layertap.objects.base import ObjectInfo, open_store
from layertap.objects.ranges import open_ranges
from layertap.objects.retry import Retry


class UrlFolder:
    """See `Folder`. It is listed once: what changes meanwhile shows as a wrong size or checksum.

    Raises the store's own errors: AccessError, UsageError, StorageError.
    """

    ahead = sys.maxsize  # several shards are uploaded at a time

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        self._store = open_store(url, retry)

    def __str__(self) -> str:
        return self._store.url

    @cached_property
    def _listed(self) -> dict[str, ObjectInfo]:
        return {info.name: info for info in self._store.list()}

    def files(self) -> Iterator[str]:
        """See `Folder`."""
        yield from self._listed

    def size(self, path: str) -> int | None:
        """See `Folder`."""
        info = self._listed.get(path)
        return None if info is None else info.size

    def open(self, path: str) -> BinaryIO:
        """See `Folder`."""
        return open_ranges(self._store, path, self.size(path) or 0)

    def close(self) -> None:
        """Let go of connections."""
        self._store.close()
