"""What `ObjectStore.put` stores: bytes that can be read more than once, their size and checksum."""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np

from layertap.errors import DamageError, StorageError
from layertap.objects.files import Buffer, crc32c_of, read_chunks


class Content(Protocol):
    """Bytes to store. `str` gives their name for a person."""

    @property
    def size(self) -> int:
        """Return the number of bytes."""

    @property
    def crc32c(self) -> str:
        """Return the CRC-32C that they should have, in eight hexadecimal digits."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield all bytes in order. Every call starts from the beginning."""

    def open(self) -> BinaryIO:
        """Return all bytes as a file. You can seek in it."""


@dataclass(frozen=True)
class FileContent:
    """A file, and the checksum that it should have. Raises StorageError if it cannot be read."""

    path: Path
    crc32c: str

    @property
    def size(self) -> int:
        with self._readable():
            return self.path.stat().st_size

    def chunks(self) -> Iterator[bytes]:
        with self._readable():
            yield from read_chunks(self.path)

    def open(self) -> BinaryIO:
        with self._readable():
            return self.path.open("rb")

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be read: {error.strerror}; restore it, or extract it again"
            ) from error


class MemoryContent:
    """Buffers in memory, one after the other, without a copy.

    An unknown checksum is computed when something asks for it.
    """

    def __init__(self, buffers: Sequence[Buffer], crc32c: str | None = None) -> None:
        self._buffers = [np.frombuffer(memoryview(buffer), np.uint8).data for buffer in buffers]
        self._known = crc32c
        self.size = sum(map(len, self._buffers))

    @cached_property
    def crc32c(self) -> str:
        return crc32c_of(self._buffers) if self._known is None else self._known

    def chunks(self) -> Iterator[memoryview]:
        return iter(self._buffers)

    def open(self) -> BinaryIO:
        return cast(BinaryIO, _Buffers(self._buffers, self.size))

    def __str__(self) -> str:
        return f"{self.size} bytes in memory"


class SeekableBytes(io.RawIOBase):
    """A file of `size` bytes that can be read at any position; whoever inherits reads there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, and return it; one before the first byte is the first byte."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(begin + offset, 0)
        return self._position


class _Buffers(SeekableBytes):
    """Buffers as one file. A read is short only at the end, because uploads rely on that."""

    def __init__(self, buffers: Sequence[memoryview], size: int) -> None:
        super().__init__(size)
        self._buffers = buffers
        self._begins = list(accumulate(map(len, buffers), initial=0))

    def readinto(self, target: "memoryview") -> int:  # type: ignore[override]
        filled = 0
        while filled < len(target) and self._position < self._size:
            number = bisect_right(self._begins, self._position) - 1
            within = self._position - self._begins[number]
            part = self._buffers[number][within : within + len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
        return filled

    def readall(self) -> bytes:
        return self.read(max(self._size - self._position, 0)) or b""


def damaged(content: Content) -> DamageError:
    """Return the error for a content that does not have its checksum."""
    return DamageError(f"{content}: does not have CRC-32C {content.crc32c}; restore it, or extract it again")


def require_intact(content: Content) -> None:
    """Read a content again, and raise DamageError if it does not have its checksum."""
    if crc32c_of(content.chunks()) != content.crc32c:
        raise damaged(content)
