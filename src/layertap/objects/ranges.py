"""An object as a file that is read in order, a range at a time: nothing goes to the disk."""

import io
from typing import BinaryIO, cast

from layertap.objects.base import ObjectStore

_RANGE_BYTES = 32 << 20


def open_ranges(store: ObjectStore, name: str, size: int) -> BinaryIO:
    """The object `name` of `size` bytes; one request for each 32 MiB, which are in memory. Can be sought in."""
    return cast(BinaryIO, io.BufferedReader(_Ranges(store, name, size), _RANGE_BYTES))


class _Ranges(io.RawIOBase):
    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while data := self._next(_RANGE_BYTES):
            parts.append(data)
        return b"".join(parts)

    def _next(self, most: int) -> bytes:
        data = self._store.read_range(self._name, self._position, max(0, min(most, self._size - self._position)))
        self._position += len(data)
        return data
