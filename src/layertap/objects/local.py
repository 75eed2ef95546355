"""Objects as files of a folder that processes share, on one machine or a file system with locks.

Every object appears by a rename of a synced file, so it is whole or missing, however the writer
ends. Conditional writes hold an exclusive `flock`, which the system releases when a process dies.
The new file is synced before the process takes the lock, and the folder after it releases the lock,
so it holds the lock for microseconds. `OWNED` content needs no lock, and leaves no lock file in a
user's output.

A process that is stopped (SIGSTOP, a frozen machine) in these microseconds keeps the lock. Nobody
may break it, because after it wakes the process would rename its file over whatever is there then.
So the others wait, but not forever: after `_LOCK_SECONDS` they raise a StorageError that says so.
Reads, listings and `server_time` need no lock.

A version is the file's inode and its modification time in nanoseconds. We set that time later than
the time of the previous write, so two writes never share one, even within a tick of the file
system's clock. The time of an object, and `server_time`, is the file system's own (`ctime`): on a
shared file system, the server's.

`view` returns a part of a memory map. The map is private and writable (copy on write): frameworks
accept such an array without a copy or a warning, and no change of it reaches the file. The system
reads from the disk only what you look at. The store keeps the last `_OPEN_MAPS` maps, because each
holds a file descriptor. An array keeps its own map.
"""

import fcntl
import io
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from layertap.errors import DamageError, StorageError, UsageError
from layertap.objects.base import OWNED, Bytes, ObjectInfo, StoredBytes, checked_name
from layertap.objects.content import Content, MemoryContent, damaged
from layertap.objects.files import TEMPORARY, atomic_write, file_crc32c, sync, temporary_beside

_LOCK = ".objects.lock"
_LOCK_SECONDS = 30.0
_LONGEST_PAUSE = 0.05
_OPEN_MAPS = 128


class LocalStore:
    """The files below `folder`. Stores below one another share one lock file, `lock`."""

    conditional = True
    local = True

    def __init__(self, folder: Path, lock: Path | None = None) -> None:
        self.url = str(folder)
        self._folder = folder
        self._lock = lock or folder / _LOCK
        self._maps: OrderedDict[str, Bytes] = OrderedDict()
        self._mapping = threading.Lock()

    def create(self, name: str, data: bytes) -> str | None:
        return self._write(name, MemoryContent([data]), None)

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        return self._write(name, MemoryContent([data]), version)

    def delete_if(self, name: str, version: str) -> bool:
        path = self._path(name)
        with _writing(path):
            with self._locked():
                if _version(path) != version:
                    return False
                path.unlink()
            sync(path.parent)
            return True

    def put(self, name: str, content: Content, *, replaces: str | None = None) -> ObjectInfo:
        path = self._path(name)
        if replaces == OWNED:
            with atomic_write(path) as sink:
                for chunk in content.chunks():
                    sink.write(chunk)
                if (sink.size, sink.crc32c) != (content.size, content.crc32c):
                    raise damaged(content)
        elif self._write(name, content, replaces) is None and not _holds(path, content):
            raise StorageError(f"{path}: holds other bytes; another run is writing there. Give another folder")
        return self._info(path)._replace(crc32c=content.crc32c)

    def read(self, name: str) -> StoredBytes | None:
        path = self._path(name)
        with _reading(path):
            try:
                with path.open("rb") as file:
                    told = os.fstat(file.fileno())
                    return StoredBytes(file.read(), _version_of(told), told.st_ctime)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self.open(name) as file, _reading(self._path(name)):
            file.seek(start)
            return file.read(length)

    def view(self, name: str, start: int, length: int) -> Bytes:
        with self._mapping:
            whole = self._maps.pop(name, None)
            if whole is None:
                whole = self._map(name)
            self._maps[name] = whole
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        if start + length > len(whole):
            raise self._too_short(name, start + length)
        return whole[start : start + length]

    def fetch(self, name: str, start: int, length: int) -> Bytes:
        """See `ObjectStore`. It is twice as fast as a map whose pages are not loaded yet."""
        content = np.empty(length, np.uint8)
        with self.open(name) as file, _reading(self._path(name)):
            file.seek(start)
            if file.readinto(content.data) != length:  # type: ignore[attr-defined]
                raise self._too_short(name, start + length)
        return content

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        path = self._path(name)
        with _reading(path):
            try:
                return path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise DamageError(f"{path}: missing") from error

    def stat(self, name: str) -> ObjectInfo | None:
        path = self._path(name)
        with _reading(path):
            return self._info(path) if path.is_file() else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _reading(self._folder):
            below = self._folder / prefix.rpartition("/")[0]
            paths = {path.relative_to(self._folder).as_posix(): path for path in below.rglob("*")}
            for name, path in sorted(paths.items()):
                if name.startswith(prefix) and path.name != _LOCK and not name.endswith(TEMPORARY):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        if path.is_file():
                            yield self._info(path)

    def server_time(self) -> float:
        with _writing(self._folder):
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock.touch()
            return self._lock.stat().st_ctime

    def below(self, folder: str) -> "LocalStore":
        return LocalStore(self._path(folder), self._lock)

    def close(self) -> None:
        with self._mapping:
            self._maps.clear()

    def _path(self, name: str) -> Path:
        return self._folder / checked_name(name)

    def _info(self, path: Path) -> ObjectInfo:
        told = path.stat()
        name = path.relative_to(self._folder).as_posix()
        return ObjectInfo(name, told.st_size, _version_of(told), told.st_ctime, None)

    def _map(self, name: str) -> Bytes:
        with self.open(name) as file, _reading(self._path(name)):
            if not file.seek(0, io.SEEK_END):  # an empty file cannot be mapped
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def _too_short(self, name: str, end: int) -> DamageError:
        return DamageError(f"{self._path(name)}: ends before byte {end}")

    def _write(self, name: str, content: Content, version: str | None) -> str | None:
        """Write the content if the object has this version; return None if it does not."""
        path = self._path(name)
        with _writing(path), temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                file.writelines(content.chunks())
            sync(temporary)
            if not _holds(temporary, content):
                raise damaged(content)
            return self._appear(temporary, path, version)

    def _appear(self, temporary: Path, path: Path, version: str | None) -> str | None:
        """Rename a synced file into place if the object has this version (None: it is missing)."""
        with self._locked():
            if _version(path) != version:
                return None
            before = path.stat().st_mtime_ns if version is not None else 0
            moment = max(time.time_ns(), before + 1)
            os.utime(temporary, ns=(moment, moment))
            temporary.replace(path)
            written = _version(path)
        sync(path.parent)
        return written

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _acquire(descriptor, self._lock)
            yield
        finally:
            os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    deadline, pause = time.monotonic() + _LOCK_SECONDS, 0.001
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            raise StorageError(
                f"{path}: was held by others for {_LOCK_SECONDS:.0f} s; a process that is stopped or hangs may have it"
                " (lslocks names it): let it continue, or end it"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _holds(path: Path, content: Content) -> bool:
    return path.stat().st_size == content.size and file_crc32c(path) == content.crc32c


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{path}: a file is where a folder should be; give another folder") from error
    except OSError as error:
        raise StorageError(
            f"{error.filename or path}: {error.strerror or error}; make room or allow writing, then run the same"
            " command again"
        ) from error


def _version(path: Path) -> str | None:
    try:
        return _version_of(path.stat())
    except FileNotFoundError:
        return None


def _version_of(told: os.stat_result) -> str:
    return f"{told.st_ino}-{told.st_mtime_ns}"
