"""The seam between Layertap and where it keeps output: a folder, a bucket, any URL of fsspec's.

Small objects that several processes change (claims, manifests) go through `create`, `replace_if`
and `delete_if`. These take effect only where the object is as the caller last saw it: of any number
of racing callers one wins. Big objects (shards) go through `put`, which returns when the far end
holds the bytes, by size and CRC-32C, and never writes over bytes that somebody else put there. They
are read in parts: `view`, `fetch` and `read_range`, or `open` for all of one.

A reply can be lost after the write took effect. The stores settle that themselves: a write that is
refused on its second attempt reads back whether the first one had won. So the answer None means:
another caller did. Only deleting stays open: after a lost reply, two callers may both learn that
they deleted. Never decide a race by it.

Versions are opaque: equal when, and only when, it is the same write. Times are the far end's own,
so the clocks of workers do not matter.

| | folder | `gs://` | other URLs |
| --- | --- | --- | --- |
| conditional calls | under a lock file | generation preconditions | refused: one writer at a time |
| verified `put` | size and CRC-32C read back | the server's CRC-32C | read back |
| `view` | a memory map | one request | one request |
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np

from layertap.errors import UsageError
from layertap.objects.content import Content

Bytes = np.ndarray
"""One dimension, uint8."""

OWNED: Final = "owned"
"""In place of a version: whatever is there. The caller is this place's only writer."""


class StoredBytes(NamedTuple):
    """A small object, read whole."""

    data: bytes
    version: str
    updated: float
    """When it was written, in seconds since 1970 by the far end's clock."""


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it."""

    name: str
    size: int
    version: str
    updated: float
    crc32c: str | None
    """Eight hexadecimal digits; None where the far end does not say."""


@runtime_checkable
class ObjectStore(Protocol):
    """Objects below one URL; names are relative to it. Safe to use from several threads."""

    url: str
    conditional: bool
    """Whether `create`, `replace_if`, `delete_if` and `server_time` are possible."""
    local: bool
    """Whether it is a folder of this machine, where to read a part again costs nothing."""

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object that does not exist; its version, or None where it exists."""

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        """Write over an object that is of this version still; its new one, or None where not."""

    def delete_if(self, name: str, version: str) -> bool:
        """Delete an object that is still of this version; False where it is not, or is gone."""

    def put(self, name: str, content: Content, *, replaces: str | None = None) -> ObjectInfo:
        """Store `content`, and return when the far end holds its size and CRC-32C.

        An object of that name is written over only where it is of version `replaces`, or always
        where that is `OWNED`; where it holds these bytes already, nothing is sent. Raises
        StorageError where it holds others, DamageError where the content itself does not have its
        checksum.

        To a folder of this machine, `OWNED` content goes as `atomic_write` does it, with no lock
        file.
        """

    def read(self, name: str) -> StoredBytes | None:
        """A whole object, or None where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """These bytes, fewer at the end; raises DamageError where there is no such object."""

    def view(self, name: str, start: int, length: int) -> Bytes:
        """A part of an object that does not change, without a copy where that can be.

        Raises DamageError where the object is not there, or ends earlier.
        """

    def fetch(self, name: str, start: int, length: int) -> Bytes:
        """The same in memory of its own, for what is copied on at once."""

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """A whole object, to be read in order; you can seek in it. Nothing is copied to the disk.

        `size` saves a request where you know it; no more than that many bytes are read from afar.
        Raises DamageError where the object is not there, at the latest when it is read.
        """

    def stat(self, name: str) -> ObjectInfo | None:
        """What is known of an object, or None where there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose names begin with `prefix`, by name; sees all that was written before."""

    def server_time(self) -> float:
        """The far end's clock, to a second."""

    def below(self, folder: str) -> "ObjectStore":
        """The objects whose names begin with `folder/`, by a store that shares connections."""

    def close(self) -> None:
        """Let go of connections, also for the stores above and below."""


def checked_name(name: str) -> str:
    """`name`, if it stays below the store's URL; raises UsageError."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/":
        raise UsageError(f"{name!r}: is no name of an object; give a relative path without '..'")
    return name
