"""An output folder behind a URL, read by ranges: nothing goes to the disk, and one file is in memory at a time."""

import io
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO, cast

from layertap.store.objects import ObjectInfo, ObjectStore, open_store
from layertap.store.retry import Retry

_RANGE_BYTES = 32 << 20


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
        return cast(BinaryIO, io.BufferedReader(_Ranges(self._store, path, self.size(path) or 0), _RANGE_BYTES))

    def close(self) -> None:
        """Let go of connections."""
        self._store.close()


class _Ranges(io.RawIOBase):
    """An object's bytes, a range at a time."""

    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._size - self._position)
        data = self._store.read_range(self._name, self._position, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while data := self._store.read_range(
            self._name, self._position, min(_RANGE_BYTES, self._size - self._position)
        ):
            self._position += len(data)
            parts.append(data)
        return b"".join(parts)
