"""The seam between Layertap and wherever objects are kept: a folder, a bucket, any URL that fsspec knows.

Two kinds of calls. Small objects that several processes change (claims, manifests) go through `create`, `replace_if`
and `delete_if`, which take effect only where the object is as the caller last saw it: of any number of racing callers
one wins. Big ones (shards) go through `upload` and `read_range`; an upload returns when the far end holds the
bytes, told by size and CRC-32C, and never writes over bytes that somebody else put there.

A reply can be lost after the write took effect. The backends settle that themselves: a write that finds itself
refused on its second attempt reads back whether the first one had won. So the answer None means: another one did.
Only deleting stays open: after a lost reply, two callers may both be told that they deleted. Never decide a race by it.

Versions are opaque: equal when, and only when, it is the same write. Times are the far end's own, so that the clocks
of workers do not matter.

| | folder | `gs://` | other URLs |
| --- | --- | --- | --- |
| conditional calls | under a lock file | generation preconditions | refused: one writer at a time |
| verified uploads | size and CRC-32C read back | the server's CRC-32C | read back |
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from layertap.core.extras import needed_for
from layertap.errors import UsageError
from layertap.objects.retry import Retry


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
    """Eight hexadecimal digits; None where the far end does not tell."""


class ObjectStore(Protocol):
    """Objects below one URL; names are relative to it. Safe to use from several threads."""

    url: str
    conditional: bool
    """Whether `create`, `replace_if`, `delete_if` and `server_time` are possible."""

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object that does not exist; its version, or None where it exists."""

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        """Write over an object that is still of this version; its new version, or None where it is not."""

    def delete_if(self, name: str, version: str) -> bool:
        """Delete an object that is still of this version; False where it is not, or is gone."""

    def read(self, name: str) -> StoredBytes | None:
        """A whole object, or None where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end; raises DamageError where there is no such object."""

    def stat(self, name: str) -> ObjectInfo | None:
        """What is known of an object, or None where there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose name begins with `prefix`, in order of names; sees all that was written before."""

    def upload(self, path: Path, name: str, crc32c: str, *, replaces: str | None = None) -> ObjectInfo:
        """Copy a file, and return when the far end holds `crc32c` and the size.

        An object of that name is written over only where it is of version `replaces`; where it holds these bytes
        already, nothing is sent. Raises StorageError where it holds others, DamageError where the file itself does not
        have this checksum.
        """

    def server_time(self) -> float:
        """The far end's clock, to a second."""

    def close(self) -> None:
        """Let go of connections."""


def open_store(url: str, retry: Retry | None = None) -> ObjectStore:
    """The store below a folder, a `gs://bucket/prefix`, or any other URL that fsspec knows.

    `STORAGE_EMULATOR_HOST` sends `gs://` to another endpoint, without credentials. Nothing is asked of the far end yet.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        from layertap.objects.local import LocalStore

        return LocalStore(Path(rest if separator else url).expanduser())
    if scheme in ("gs", "gcs"):
        try:
            from layertap.objects.gcs import GcsStore
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("google", "requests"):
                raise
            raise UsageError(f"no module {error.name}: gs:// needs {needed_for(url)}") from error
        return GcsStore(rest, retry or Retry())
    from layertap.objects.fsspec import FsspecStore

    return FsspecStore(url, retry or Retry())


def checked_name(name: str) -> str:
    """`name`, if it stays below the store's URL; raises UsageError."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/":
        raise UsageError(f"{name!r}: is no name of an object; give a relative path without '..'")
    return name
