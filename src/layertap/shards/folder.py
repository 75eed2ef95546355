"""An output folder as `verify`, `stats` and `inspect` see it: three calls, so that it may lie anywhere.

`read_stored` is the one way by which they come to a file's content: whole, and checked against the manifest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

import google_crc32c

from layertap.errors import DamageError, StorageError, UsageError
from layertap.shards.manifest import FILE_NAME, Manifest, StoredFile, parse_manifest


class Folder(Protocol):
    """Files by their path below the folder, with `/`; its `str` is what a person calls it."""

    @property
    def ahead(self) -> int:
        """How many shards an interrupted run may leave that the manifest does not name yet."""

    def files(self) -> Iterator[str]:
        """The paths of all files, in order; raises OSError."""

    def size(self, path: str) -> int | None:
        """A file's size in bytes, None where there is no such file; raises OSError."""

    def open(self, path: str) -> BinaryIO:
        """A file's content; raises OSError."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path
    ahead: ClassVar[int] = 1

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> Iterator[str]:
        """See `Folder`."""
        for path in sorted(self.path.rglob("*")):
            if not path.is_dir():
                yield path.relative_to(self.path).as_posix()

    def size(self, path: str) -> int | None:
        """See `Folder`."""
        file = self.path / path
        return file.stat().st_size if file.is_file() else None

    def open(self, path: str) -> BinaryIO:
        """See `Folder`."""
        return (self.path / path).open("rb")


def has_file(folder: Folder, path: str) -> bool:
    """Whether the folder has this file; raises StorageError where it cannot be read."""
    try:
        return folder.size(path) is not None
    except OSError as error:
        raise StorageError(f"{folder}/{path}: cannot be read: {error.strerror or error}") from error


def require_manifest(folder: Folder) -> Manifest:
    """The folder's manifest; raises UsageError where it holds none, DamageError or StorageError as `read_manifest`."""
    name = f"{folder}/{FILE_NAME}"
    try:
        if folder.size(FILE_NAME) is None:
            raise UsageError(f"{name}: no such file; {folder} is not the output folder of a run")
        with folder.open(FILE_NAME) as file:
            content = file.read()
    except OSError as error:
        raise StorageError(f"{name}: cannot be read: {error.strerror or error}") from error
    return parse_manifest(content, name)


def read_stored(folder: Folder, file: StoredFile) -> bytes:
    """The content of a file that the manifest names; raises DamageError where it is not what the manifest says."""
    try:
        size = folder.size(file.path)
        if size is None:
            raise DamageError(f"{file.path}: missing")
        if size != file.bytes:
            raise DamageError(f"{file.path}: has {size} bytes, should have {file.bytes}")
        with folder.open(file.path) as opened:
            content = opened.read()
    except OSError as error:
        raise DamageError(f"{file.path}: cannot be read: {error.strerror or error}") from error
    crc32c = f"{google_crc32c.value(content):08x}"
    if crc32c != file.crc32c:
        raise DamageError(f"{file.path}: has CRC-32C {crc32c}, should have {file.crc32c}")
    return content
