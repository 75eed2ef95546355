"""Files that are either whole or missing.

`atomic_write` writes to a temporary name beside the target, syncs, renames, and syncs the folder.
After a crash at any moment the target holds its old content or its new one, never a part. A write
that fails removes its temporary file. A killed process leaves one that ends in `TEMPORARY`, which
no other program uses. The next run in the same output folder removes it (`remove_leftovers`).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleBuffer
from typing import BinaryIO
from uuid import uuid4

import numpy as np
from crc32c import crc32c

from layertap.errors import StorageError

TEMPORARY = ".layertap.partial"

Buffer = bytes | memoryview | PickleBuffer
"""Any kind, if contiguous."""


class Checksummed:
    """A binary sink that counts the bytes that pass through it and computes their CRC-32C."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._crc = 0
        self.size = 0

    def write(self, data: Buffer) -> int:
        """Pass `data` on. It may be any contiguous buffer."""
        flat = np.frombuffer(memoryview(data), np.uint8)
        self._crc = crc32c_extended(self._crc, flat.data)
        self.size += flat.size
        return self._sink.write(flat.data)

    def flush(self) -> None:
        """Flush the sink."""
        self._sink.flush()

    @property
    def crc32c(self) -> str:
        """Return the checksum so far, in eight hexadecimal digits."""
        return f"{self._crc:08x}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Checksummed]:
    """Open `path` for writing. It appears, whole and synced, when the block ends without error.

    Raises StorageError with the path if the disk is full, read-only or fails otherwise.
    """
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                yield Checksummed(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}. What was committed before is safe;"
            " make room or allow writing, then run the same command again"
        ) from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Make the folder of `path` and yield a name beside it; remove what is left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left below `folder`; raises StorageError if it cannot."""
    for leftover in folder.rglob(f"*{TEMPORARY}"):
        try:
            leftover.unlink()
        except OSError as error:
            raise StorageError(f"{leftover}: cannot be removed: {error.strerror}; remove it by hand") from error


def read_chunks(path: Path, chunk_bytes: int = 1 << 22) -> Iterator[bytes]:
    """Yield the content of a file, `chunk_bytes` at a time."""
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            yield chunk


def crc32c_of(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the CRC-32C of all bytes, in eight hexadecimal digits."""
    crc = 0
    for chunk in chunks:
        crc = crc32c_extended(crc, chunk)
    return f"{crc:08x}"


def crc32c_extended(crc: int, chunk: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes, whose own is `crc`, with the chunk after them.

    Other threads run meanwhile, if the chunk is 32 kB or longer.
    """
    return crc32c(chunk, crc)


def file_crc32c(path: Path, chunk_bytes: int = 1 << 22) -> str:
    """Return the CRC-32C of a file. It reads `chunk_bytes` at a time."""
    return crc32c_of(read_chunks(path, chunk_bytes))


def sync(path: Path) -> None:
    """Make sure that a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
