"""The interface between Layertap and the place of its output: a folder, a bucket, any fsspec URL.

Small objects that several processes change (claims, manifests) go through `create`, `replace_if`
and `delete_if`. These take effect only if the object is still as the caller last saw it. So one of
any number of racing callers wins. Big objects (shards) go through `put`. It returns when the store
holds the bytes, by size and CRC-32C, and it never overwrites bytes of another writer. You read them
in parts with `view`, `fetch` and `read_range`, or whole with `open`.

A reply can be lost after the write took effect. The stores handle that themselves: if the second
attempt at a write is refused, they read back whether the first one won. So None means that another
caller won. Only deletion stays ambiguous: after a lost reply, two callers may both learn that they
deleted. Never decide a race by it.

Versions are opaque. Two are equal if and only if they are of the same write. Times come from the
store's clock, so the clocks of workers do not matter.

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
"""In place of a version: any version. The caller is this place's only writer."""


class StoredBytes(NamedTuple):
    """The whole content of a small object."""

    data: bytes
    version: str
    updated: float
    """When it was written, in seconds since 1970 by the store's clock."""


class ObjectInfo(NamedTuple):
    """What a store knows of an object without reading it."""

    name: str
    size: int
    version: str
    updated: float
    crc32c: str | None
    """Eight hexadecimal digits; None if the store does not say."""


@runtime_checkable
class ObjectStore(Protocol):
    """The objects below one URL. Names are relative to it. Several threads may use a store."""

    url: str
    conditional: bool
    """Whether `create`, `replace_if`, `delete_if` and `server_time` are possible."""
    local: bool
    """Whether it is a folder of this machine. There, a second read of a part costs nothing."""

    def create(self, name: str, data: bytes) -> str | None:
        """Write a new object. Return its version, or None if the object exists."""

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        """Overwrite an object that still has this version. Return the new version, or None."""

    def delete_if(self, name: str, version: str) -> bool:
        """Delete an object that still has this version. Return False if it changed or is gone."""

    def put(self, name: str, content: Content, *, replaces: str | None = None) -> ObjectInfo:
        """Store `content`, and return when the store holds its size and CRC-32C.

        It overwrites an object of that name only if the object has version `replaces`, or always if
        `replaces` is `OWNED`. If the object holds these bytes already, nothing is sent. Raises
        StorageError if it holds others, DamageError if the content itself does not have its
        checksum.

        In a folder of this machine, `OWNED` content is written by `atomic_write`, without a lock
        file.
        """

    def read(self, name: str) -> StoredBytes | None:
        """Return a whole object, or None if there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return these bytes, fewer at the end. Raises DamageError if there is no such object."""

    def view(self, name: str, start: int, length: int) -> Bytes:
        """Return a part of an object that does not change, if possible without a copy.

        Raises DamageError if the object is missing or too short.
        """

    def fetch(self, name: str, start: int, length: int) -> Bytes:
        """Return the same in memory of its own, for data that is copied at once."""

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """Open a whole object for reading in order. You can seek in it. It needs no disk.

        If you know the `size`, it saves a request; no more bytes than that are read from a remote
        store. Raises DamageError if the object is missing, at the latest when it is read.
        """

    def stat(self, name: str) -> ObjectInfo | None:
        """Return what the store knows of an object, or None if there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with `prefix`, by name, with all earlier writes."""

    def server_time(self) -> float:
        """Return the time of the store's clock, to a second."""

    def below(self, folder: str) -> "ObjectStore":
        """Return a store for the names that begin with `folder/`. It shares connections."""

    def close(self) -> None:
        """Close the connections, also those of the stores above and below."""


def checked_name(name: str) -> str:
    """Return `name` if it stays below the store's URL; raises UsageError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/":
        raise UsageError(f"{name!r}: is no name of an object; give a relative path without '..'")
    return name
