"""Objects as files of a folder, shared by any processes of this machine (or of a file system with locks).

Every object appears by a rename of a synced file, so it is whole or not there, however the writer ends. What is
conditional happens under an exclusive `flock`, which the system releases when a process dies. The new file is synced
before the lock is taken, and the folder after it was given back, so the lock is held for microseconds.

A process that is stopped (SIGSTOP, a frozen machine) in these microseconds keeps the lock, and nobody may break it:
once awake it would finish its rename over whatever is there then. So the others wait for it, but not in silence and not
for good: after `_LOCK_SECONDS` they say so in a StorageError. Reading, listing and `server_time` need no lock.

A version is the file's inode and its modification time in nanoseconds, which is set by us to be later than that of the
write before: two writes never share one, even within a tick of the file system's clock. The time of an object, and
`server_time`, is the file system's own (`ctime`): on a shared file system, the server's.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from layertap.errors import DamageError, StorageError, UsageError
from layertap.objects.base import ObjectInfo, StoredBytes, checked_name
from layertap.objects.files import TEMPORARY, file_crc32c, sync_folder

_LOCK = ".objects.lock"
_LOCK_SECONDS = 30.0
_LONGEST_PAUSE = 0.05


class LocalStore:
    """See `ObjectStore`."""

    conditional = True

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self._folder = folder

    def create(self, name: str, data: bytes) -> str | None:
        """See `ObjectStore`."""
        return self._write(name, data, None)

    def replace_if(self, name: str, data: bytes, version: str) -> str | None:
        """See `ObjectStore`."""
        return self._write(name, data, version)

    def delete_if(self, name: str, version: str) -> bool:
        """See `ObjectStore`."""
        path = self._path(name)
        with _translated(path):
            with self._locked():
                if _version(path) != version:
                    return False
                path.unlink()
            sync_folder(path.parent)
            return True

    def read(self, name: str) -> StoredBytes | None:
        """See `ObjectStore`."""
        path = self._path(name)
        with _translated(path):
            try:
                with path.open("rb") as file:
                    told = os.fstat(file.fileno())
                    return StoredBytes(file.read(), _version_of(told), told.st_ctime)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See `ObjectStore`."""
        path = self._path(name)
        with _translated(path):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            except FileNotFoundError as error:
                raise DamageError(f"{path}: no such file") from error

    def stat(self, name: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        path = self._path(name)
        with _translated(path):
            return self._info(path) if path.is_file() else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore`."""
        with _translated(self._folder):
            below = self._folder / prefix.rpartition("/")[0]
            paths = {path.relative_to(self._folder).as_posix(): path for path in below.rglob("*")}
            for name, path in sorted(paths.items()):
                if name.startswith(prefix) and name != _LOCK and not name.endswith(TEMPORARY):
                    with suppress(FileNotFoundError):  # deleted since
                        if path.is_file():
                            yield self._info(path)

    def upload(self, path: Path, name: str, crc32c: str, *, replaces: str | None = None) -> ObjectInfo:
        """See `ObjectStore`."""
        target = self._path(name)
        with _translated(target), self._temporary(target) as temporary:
            shutil.copyfile(path, temporary)
            _sync(temporary)
            if file_crc32c(temporary) != crc32c:
                raise DamageError(f"{path}: does not have CRC-32C {crc32c}; restore it, or extract it again")
            if self._appear(temporary, target, replaces) is None and not self._holds(target, temporary, crc32c):
                raise StorageError(f"{target}: holds other bytes; another run is writing there. Give another folder")
            return self._info(target)._replace(crc32c=crc32c)

    def server_time(self) -> float:
        """See `ObjectStore`."""
        with _translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = self._folder / _LOCK
            lock.touch()
            return lock.stat().st_ctime

    def close(self) -> None:
        """See `ObjectStore`."""

    def _path(self, name: str) -> Path:
        return self._folder / checked_name(name)

    def _info(self, path: Path) -> ObjectInfo:
        told = path.stat()
        name = path.relative_to(self._folder).as_posix()
        return ObjectInfo(name, told.st_size, _version_of(told), told.st_ctime, None)

    def _holds(self, target: Path, wanted: Path, crc32c: str) -> bool:
        return target.stat().st_size == wanted.stat().st_size and file_crc32c(target) == crc32c

    def _write(self, name: str, data: bytes, version: str | None) -> str | None:
        path = self._path(name)
        with _translated(path), self._temporary(path) as temporary:
            temporary.write_bytes(data)
            _sync(temporary)
            return self._appear(temporary, path, version)

    def _appear(self, temporary: Path, path: Path, version: str | None) -> str | None:
        """Let a synced file take its place if the one there is of this version (None: if there is none)."""
        with self._locked():
            if _version(path) != version:
                return None
            before = path.stat().st_mtime_ns if version is not None else 0
            moment = max(time.time_ns(), before + 1)
            os.utime(temporary, ns=(moment, moment))
            temporary.replace(path)
            written = _version(path)
        sync_folder(path.parent)
        return written

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY}")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, self._folder / _LOCK)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline, pause = time.monotonic() + _LOCK_SECONDS, 0.001
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            raise StorageError(
                f"{path}: was held by others for {_LOCK_SECONDS:.0f} s; a process that is stopped or hangs may have it"
                " (lslocks names it): let it go on, or end it"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{path}: a file stands where a folder should; give another folder") from error
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
