"""Bytes that are read a part at a time, as a file that is read in order: nothing goes to the disk."""

import io
from collections.abc import Callable
from typing import BinaryIO, cast

ReadPart = Callable[[int, int], "bytes | memoryview"]
"""So many bytes from a start; fewer only at the end."""


def open_parts(read: ReadPart, size: int, part_bytes: int) -> BinaryIO:
    """The first `size` bytes, or as many as there are; you can seek in them.

    Each `part_bytes` take one call of `read`, and are in memory.
    """
    return cast(BinaryIO, io.BufferedReader(_Parts(read, size, part_bytes), part_bytes))


class _Parts(io.RawIOBase):
    def __init__(self, read: ReadPart, size: int, part_bytes: int) -> None:
        self._read = read
        self._size = size
        self._part_bytes = part_bytes
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
        while data := self._next(self._part_bytes):
            parts.append(data)
        return b"".join(parts)

    def _next(self, most: int) -> "bytes | memoryview":
        wanted = min(most, self._part_bytes, self._size - self._position)
        data = self._read(self._position, wanted) if wanted > 0 else b""
        self._position += len(data)
        if len(data) < wanted:
            self._size = self._position
        return data
