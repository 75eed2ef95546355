"""What `ObjectStore.put` stores: bytes with their size and checksum, which can be read again for another attempt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from layertap.errors import StorageError
from layertap.objects.files import Buffer, crc32c_of, read_chunks
from layertap.objects.seeking import open_parts


class Content(Protocol):
    """Bytes to be stored; `str` gives what a person calls them."""

    @property
    def size(self) -> int:
        """How many bytes."""

    @property
    def crc32c(self) -> str:
        """Their CRC-32C, eight hexadecimal digits."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """All of them in order, from the beginning at every call."""


@dataclass(frozen=True)
class FileContent:
    """A file, and the checksum that it should have. Raises StorageError where it cannot be read."""

    path: Path
    crc32c: str

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error

    def chunks(self) -> Iterator[bytes]:
        try:
            yield from read_chunks(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def __str__(self) -> str:
        return str(self.path)

    def _unreadable(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path}: cannot be read: {error.strerror}; restore it, or extract it again")


class MemoryContent:
    """Contiguous buffers in memory, one after the other; they are not copied."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = [np.frombuffer(memoryview(buffer), np.uint8).data for buffer in buffers]
        self.size = sum(map(len, self._buffers))

    @cached_property
    def crc32c(self) -> str:
        return crc32c_of(self._buffers)

    def chunks(self) -> Iterator[memoryview]:
        return iter(self._buffers)

    def __str__(self) -> str:
        return f"{self.size} bytes in memory"


def open_content(content: Content) -> BinaryIO:
    """The content as a file that is read in order; you can seek in it. To go back begins again."""
    return open_parts(_Parts(content), content.size, 4 << 20)


class _Parts:
    """Any part of a content, from the chunk that was read last or from later ones."""

    _chunk: memoryview

    def __init__(self, content: Content) -> None:
        self._content = content
        self._begin_again()

    def __call__(self, start: int, length: int) -> bytes:
        parts: list[memoryview] = []
        while length and (part := self._chunk_at(start)[:length]):
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def _chunk_at(self, start: int) -> memoryview:
        """The rest of the chunk in which `start` lies; empty at the end."""
        if start < self._begin:
            self._begin_again()
        while start >= self._begin + len(self._chunk):
            self._begin += len(self._chunk)
            chunk = next(self._chunks, None)
            if chunk is None:
                return memoryview(b"")
            self._chunk = memoryview(chunk)
        return self._chunk[start - self._begin :]

    def _begin_again(self) -> None:
        self._chunks = self._content.chunks()
        self._begin = 0
        self._chunk = memoryview(b"")
