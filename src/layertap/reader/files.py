"""Bytes of stored files: mapped into memory on this machine, fetched by ranges from anywhere else.

A map is private and may be written to (copy on write): what is handed out is a view of it that frameworks take without
a copy or a warning, and nothing that is done to it reaches the file. Nothing is read from the disk before it is
looked at. The last `_OPEN_MAPS` maps are kept, since each holds a file descriptor; an array keeps its own.
"""

import io
import mmap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from layertap.errors import DamageError, StorageError
from layertap.objects.base import ObjectStore
from layertap.objects.ranges import open_ranges
from layertap.shards.manifest import StoredFile

_OPEN_MAPS = 128

Bytes = np.ndarray
"""One dimension, uint8."""


class Files(Protocol):
    """The files of one output folder."""

    local: bool
    """Whether reading a part again costs nothing."""

    def name(self, file: StoredFile) -> str:
        """What a person calls the file."""

    def read(self, file: StoredFile, start: int, length: int) -> Bytes:
        """A part of a file, as a view where that can be; raises DamageError where the file is not there, or of another
        size.
        """

    def fetch(self, file: StoredFile, start: int, length: int) -> Bytes:
        """The same in memory of its own, for what is copied on at once."""

    def stream(self, file: StoredFile) -> BinaryIO:
        """The whole file, in order; can be sought in. Raises DamageError where it is not there."""


class MappedFiles:
    """Files of a folder of this machine."""

    local = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: OrderedDict[str, Bytes] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, file: StoredFile) -> str:
        """See `Files`."""
        return str(self._folder / file.path)

    def read(self, file: StoredFile, start: int, length: int) -> Bytes:
        """See `Files`; a view of the map."""
        with self._lock:
            whole = self._maps.pop(file.path, None)
            if whole is None:
                whole = self._map(file)
            self._maps[file.path] = whole
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return whole[start : start + length]

    def fetch(self, file: StoredFile, start: int, length: int) -> Bytes:
        """See `Files`; twice as fast as through a map whose pages were not touched yet."""
        content = np.empty(length, np.uint8)
        with self.stream(file) as opened:
            self._require_size(file, opened.seek(0, io.SEEK_END))
            opened.seek(start)
            if opened.readinto(content.data) != length:  # type: ignore[attr-defined]
                raise DamageError(f"{self.name(file)}: ends before byte {start + length}")
        return content

    def stream(self, file: StoredFile) -> BinaryIO:
        """See `Files`."""
        path = self._folder / file.path
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise DamageError(f"{path}: missing") from error
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error

    def _map(self, file: StoredFile) -> Bytes:
        with self.stream(file) as opened:
            self._require_size(file, opened.seek(0, io.SEEK_END))
            return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def _require_size(self, file: StoredFile, size: int) -> None:
        if size != file.bytes or not size:
            raise DamageError(f"{self.name(file)}: has {size} bytes, should have {file.bytes}")


class RangedFiles:
    """Files below a folder of an object store."""

    local = False

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store = store
        self._prefix = f"{folder}/" if folder else ""

    def name(self, file: StoredFile) -> str:
        """See `Files`."""
        return f"{self._store.url}/{self._prefix}{file.path}"

    def read(self, file: StoredFile, start: int, length: int) -> Bytes:
        """See `Files`; one request."""
        content = self._store.read_range(self._prefix + file.path, start, length)
        if len(content) != length:
            raise DamageError(f"{self.name(file)}: ends before byte {start + length}, should have {file.bytes}")
        return np.frombuffer(content, np.uint8)

    fetch = read

    def stream(self, file: StoredFile) -> BinaryIO:
        """See `Files`."""
        return open_ranges(self._store, self._prefix + file.path, file.bytes)
