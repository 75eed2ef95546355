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
from typing import BinaryIO, Protocol, cast

import numpy as np

from layertap.errors import DamageError, StorageError
from layertap.store.manifest import StoredFile
from layertap.store.objects import ObjectStore

_OPEN_MAPS = 128
_STREAM_BYTES = 16 << 20

Bytes = np.ndarray
"""One dimension, uint8."""


class Files(Protocol):
    """The files of one output folder."""

    local: bool
    """Whether reading a part again costs nothing."""

    def name(self, file: StoredFile) -> str:
        """What a person calls the file."""

    def read(self, file: StoredFile, start: int, length: int) -> Bytes:
        """A part of a file; raises DamageError where the file is not there, or of another size."""

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
            size = opened.seek(0, io.SEEK_END)
            if size != file.bytes or not size:
                raise DamageError(f"{self.name(file)}: has {size} bytes, should have {file.bytes}")
            return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


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

    def stream(self, file: StoredFile) -> BinaryIO:
        """See `Files`; `_STREAM_BYTES` at a time."""
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, file), _STREAM_BYTES))


class _Ranges(io.RawIOBase):
    """A file that is fetched range by range, as it is read."""

    def __init__(self, files: RangedFiles, file: StoredFile) -> None:
        self._files = files
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.bytes}[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._file.bytes - self._place)
        if length <= 0:
            return 0
        buffer[:length] = self._files.read(self._file, self._place, length).data
        self._place += length
        return length
