"""What `ObjectStore.put` stores: bytes with their size and checksum, to be read more than once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from layertap.errors import DamageError, StorageError
from layertap.objects.files import Buffer, crc32c_of, read_chunks


class Content(Protocol):
    """Bytes to be stored; `str` gives what a person calls them."""

    @property
    def size(self) -> int:
        """How many bytes."""

    @property
    def crc32c(self) -> str:
        """The CRC-32C that they should have, eight hexadecimal digits."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """All of them in order, from the beginning at every call."""

    def open(self) -> BinaryIO:
        """All of them as a file; you can seek in it."""


@dataclass(frozen=True)
class FileContent:
    """A file, and the checksum that it should have. Raises StorageError where it cannot be read."""

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
    """Buffers in memory, one after the other; not copied, but for a far end.

    Their checksum, where it is not known, is taken when it is asked for.
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
        return BytesIO(b"".join(self._buffers))

    def __str__(self) -> str:
        return f"{self.size} bytes in memory"


def damaged(content: Content) -> DamageError:
    """What to raise where a content does not have its checksum."""
    return DamageError(f"{content}: does not have CRC-32C {content.crc32c}; restore it, or extract it again")


def require_intact(content: Content) -> None:
    """Read a content again, and raise DamageError where it does not have its checksum."""
    if crc32c_of(content.chunks()) != content.crc32c:
        raise damaged(content)
